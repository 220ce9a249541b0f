"""Selection of what is distilled: of which rows, and of a row which classes.

It is made once, where a batch is made; the store of soft targets and the plan use the same rule.
"""

from dataclasses import dataclass, replace

import numpy as np

from multas_ray.config import Config, DistilledOn, Task
from multas_ray.data.batch import Some, TrainBatch, marked


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


def classes_to_distil(on: DistilledOn, unlabelled: np.ndarray) -> np.ndarray:
    """Select the classes that selected rows are distilled on.

    Args:
        on: what to distil: what annotation lacks, what it has, or all.
        unlabelled: (n, C) bool: classes without annotation; all of a row that is not annotated.

    Returns:
        (n, C) bool.
    """
    chosen: np.ndarray = {"missing": unlabelled, "annotated": ~unlabelled, "all": np.ones_like(unlabelled)}[on]
    return chosen


@dataclass(frozen=True)
class SelectDistilled:
    """Addition to the training stream: selects what of a batch each task is distilled on."""

    config: Config
    classes: dict[Task, int]
    """Number of classes of each task."""

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        """Return the batch with `distil`."""
        distil = self.config.distill
        # A row without an id stands in where no row of the part can be decoded.
        real = np.array([image_id != "" for image_id in batch.ids], bool)
        if distil.start and batch.part.step < distil.start * self.config.train.steps:
            real &= False
        return replace(batch, distil={task: self._of(task, batch, real) for task in self.config.distilled_tasks()})

    def _of(self, task: Task, batch: TrainBatch, real: np.ndarray) -> Some[np.ndarray]:
        on, every = self.config.distill.of(task).on, np.arange(len(batch.ids))
        annotated = np.isin(every, batch.truth[task].rows)
        partial = batch.unlabelled.get(task)
        in_part = np.zeros_like(annotated) if partial is None else np.isin(every, partial.rows)
        rows = np.flatnonzero(rows_to_distil(on, annotated, in_part) & real)
        unlabelled = np.repeat(~annotated[rows, None], self.classes[task], axis=1)
        marks = marked(partial, rows)
        return Some(rows, classes_to_distil(on, unlabelled if marks is None else unlabelled | marks))
