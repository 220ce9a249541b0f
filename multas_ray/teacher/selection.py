"""Selection of the rows that are distilled.

It is made once, where a batch is made; the store of soft targets and the plan use the same rule.
"""

from dataclasses import dataclass, replace

import numpy as np

from multas_ray.config import Config, DistilledOn, Task
from multas_ray.data.batch import TrainBatch


def select_rows(on: DistilledOn, annotated: np.ndarray) -> np.ndarray:
    """Select the rows that are distilled.

    Args:
        on: rows to select: with missing annotation, with annotation, or all.
        annotated: (n,) bool, whether each row is annotated for the task.

    Returns:
        (n,) bool.
    """
    return {"missing": ~annotated, "annotated": annotated, "all": np.ones_like(annotated)}[on]


@dataclass(frozen=True)
class SelectDistilled:
    """Addition to the training stream: selects the rows of a batch on which each task is distilled."""

    config: Config

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        """Return the batch with `distil`."""
        distil = self.config.distill
        # A row without an id stands in where no row of the part can be decoded.
        real = np.array([image_id != "" for image_id in batch.ids], bool)
        if distil.start and batch.part.step < distil.start * self.config.train.steps:
            real &= False
        rows: dict[Task, np.ndarray] = {}
        for task in self.config.distilled_tasks():
            annotated = np.isin(np.arange(len(batch.ids)), batch.truth[task].rows)
            rows[task] = np.flatnonzero(select_rows(distil.of(task).on, annotated) & real)
        return replace(batch, distil=rows)
