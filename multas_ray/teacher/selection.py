"""Selection of what is distilled: of which rows, and of a row which classes.

It is made once, where a batch is made; the store of soft targets and the plan use the same rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from multas_ray.config import Config, DistilledOn, Task
from multas_ray.data.batch import Compared, Some, TrainBatch, marked
from multas_ray.tasks import PARTS


def rows_to_distil(on: DistilledOn, annotated: np.ndarray, partial: np.ndarray) -> np.ndarray:
    """Select the rows that are distilled.

    Args:
        on: what to distil: what annotation lacks, what it has, or all.
        annotated: (n,) bool, whether each row is annotated for the task.
        partial: (n,) bool, whether it is, with some classes unlabelled.

    Returns:
        (n,) bool.
    """
    chosen: np.ndarray = {"missing": ~annotated | partial, "annotated": annotated, "all": np.ones_like(annotated)}[on]
    return chosen


def classes_to_distil(on: DistilledOn, unlabelled: np.ndarray, known: np.ndarray, hides: bool) -> Compared:
    """Select what selected rows are distilled on.

    Args:
        on: what to distil: what annotation lacks, what it has, or all.
        unlabelled: (n, C) bool: classes without annotation; all of a row that is not annotated.
        known: (C,) bool: classes that the teacher knows.
        hides: whether what is of no other class is of the first one, the background.
    """
    wanted = {"missing": unlabelled, "annotated": ~unlabelled, "all": np.ones_like(unlabelled)}[on]
    # What the teacher does not know it takes for background, if it knows that.
    strange = {"missing": unlabelled & ~known, "annotated": unlabelled | ~known, "all": ~known & wanted}[on]
    merges = hides and bool(known[0])
    merged = strange & merges
    merged[:, 0] |= merges
    return Compared(wanted & known, merged)


@dataclass(frozen=True)
class SelectDistilled:
    """Addition to the training stream: selects what of a batch each task is distilled on."""

    config: Config
    classes: Mapping[Task, Sequence[str]]
    """Classes of each task."""
    known: Mapping[Task, np.ndarray]
    """(C,) bool for each task that has a teacher: the classes that it knows; a task without an entry has them all."""

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        """Return the batch with `distil`."""
        distil = self.config.distill
        # A row without an id stands in where no row of the part can be decoded.
        real = np.array([image_id != "" for image_id in batch.ids], bool)
        if distil.start and batch.part.step < distil.start * self.config.train.steps:
            real &= False
        return replace(batch, distil={task: self._of(task, batch, real) for task in self.config.distilled_tasks()})

    def _of(self, task: Task, batch: TrainBatch, real: np.ndarray) -> Some[Compared]:
        on, every = self.config.distill.of(task).on, np.arange(len(batch.ids))
        annotated = np.isin(every, batch.truth[task].rows)
        marks = marked(batch.unlabelled.get(task), every)
        names = self.classes[task]
        unlabelled = np.repeat(~annotated[:, None], len(names), axis=1)
        if marks is not None:
            unlabelled |= marks
        rows = rows_to_distil(on, annotated, annotated & unlabelled.any(axis=1)) & real
        known = self.known.get(task, np.ones(len(names), bool))
        compared = classes_to_distil(on, unlabelled, known, task == "seg" and PARTS[task].rows.hides(names))
        chosen = np.flatnonzero(rows & compared.classes.any(axis=1))
        return Some(chosen, Compared(compared.classes[chosen], compared.merged[chosen]))
