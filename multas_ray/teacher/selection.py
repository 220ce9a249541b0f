"""Which rows are distilled: decided once, where a batch is made; the store and the plan go by the same rule."""

from dataclasses import dataclass, replace

import numpy as np

from multas_ray.config import Config, DistilledOn, Task
from multas_ray.data.batch import TrainBatch


def select_rows(on: DistilledOn, annotated: np.ndarray) -> np.ndarray:
    """(n,) bool: the rows that are distilled, of those that are annotated for the task or not (n,) bool."""
    return {"missing": ~annotated, "annotated": annotated, "all": np.ones_like(annotated)}[on]


@dataclass(frozen=True)
class SelectDistilled:
    """Adds to the batches of the training stream which rows each task is distilled on."""

    config: Config

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        """The batch with `distil`."""
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
