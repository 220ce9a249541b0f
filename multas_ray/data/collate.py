"""Making of one batch: rows of a split are read, decoded, augmented and collated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from multas_ray.config import TASKS, AugmentConfig, Task
from multas_ray.data.batch import EvalBatch, RejectedRow, Some, TrainBatch
from multas_ray.data.geometry import Geometry
from multas_ray.data.index import Index
from multas_ray.data.plan import Part
from multas_ray.data.read import read_sample
from multas_ray.data.reject import Reject
from multas_ray.data.transforms import Augment, Sample
from multas_ray.tasks import PARTS

Row = Mapping[str, Any]
"""Row as `read_row` returns it."""
STAND_IN: Row = {"image_id": "", **{f"has_{task}": False for task in TASKS}}
"""Row of the black image in a batch without a usable row."""


def make_train_batch(index: Index, part: Part, augment: AugmentConfig) -> TrainBatch:
    """Read, decode, augment and collate one part.

    Rows that cannot be used are left out and listed in `rejected`. If none is left, the batch is one black image
    without id or annotation.

    Args:
        index: index of the split.
        part: rows, seeds and image size of the batch.
        augment: configuration of the augmentation.

    Raises:
        UserError: a file of the data set is missing, or has changed since the run began.
    """
    transform = Augment(augment)

    def finish(sample: Sample, place: int) -> Sample:
        return transform(sample, part.size, int(part.seeds[place]))

    usable, rows, samples, rejected = _read(index, part, finish)
    if rejected and not rows:
        usable, rows = part.at([0]), [STAND_IN]
        samples = [{"image": torch.zeros(3, part.size, part.size, dtype=torch.uint8), "geometry": Geometry()}]
    truth = {}
    for task in TASKS:
        annotated = _annotated(rows, task)
        truth[task] = Some(annotated, PARTS[task].rows.collate([samples[row] for row in annotated], part.size))
    return TrainBatch(
        part=usable,
        ids=tuple(row["image_id"] for row in rows),
        images=_images(samples, part.size),
        truth=truth,
        unlabelled=_unlabelled(index, rows, [task for task in TASKS if PARTS[task].rows.hides(index.names[task])]),
        rejected=rejected,
        geometry=tuple(sample["geometry"] for sample in samples),
    )


def make_eval_batch(index: Index, part: Part) -> EvalBatch:
    """Read, decode and collate one part, without the rows that cannot be used.

    Args:
        index: index of the split.
        part: rows and image size of the batch.

    Raises:
        UserError: a file of the data set is missing, or has changed since the run began.
    """

    def finish(sample: Sample, place: int) -> Sample:
        return {**sample, "image": sample["image"].whole(part.size)}

    usable, rows, samples, rejected = _read(index, part, finish)
    truth = {}
    for task in TASKS:
        annotated = _annotated(rows, task)
        truth[task] = Some(annotated, tuple(PARTS[task].rows.original(samples[row]) for row in annotated))
    return EvalBatch(
        part=usable,
        ids=tuple(row["image_id"] for row in rows),
        images=_images(samples, part.size),
        sizes=tuple((row["height"], row["width"]) for row in rows),
        truth=truth,
        unlabelled=_unlabelled(index, rows, TASKS),
        sources=tuple(index.origin_of(int(row)).name for row in usable.rows),
        rejected=rejected,
    )


def _read(
    index: Index, part: Part, finish: Callable[[Sample, int], Sample]
) -> tuple[Part, list[Row], list[Sample], tuple[RejectedRow, ...]]:
    """Read a part: the part of its usable rows, these rows, their samples, and the rejected rows.

    Args:
        index: index of the split.
        part: rows to read.
        finish: decodes a sample's image; called with the sample, and the place of its row in the part.
    """
    places: list[int] = []
    rows: list[Row] = []
    samples: list[Sample] = []
    rejected: list[RejectedRow] = []
    for place, number in enumerate(part.rows):
        image_id = ""
        try:
            row, sample = read_sample(index, int(number))
            image_id = row["image_id"]
            sample = finish(sample, place)
        except Reject as reject:
            rejected.append(RejectedRow(reject.image_id or image_id, reject.reason, reject.detail))
        else:
            places.append(place)
            rows.append(row)
            samples.append(sample)
    return part.at(places), rows, samples, tuple(rejected)


def _annotated(rows: Sequence[Row], task: Task) -> np.ndarray:
    """Number the rows with annotation of a task: (k,) int64."""
    return np.flatnonzero([row[f"has_{task}"] for row in rows])


def _unlabelled(index: Index, rows: Sequence[Row], tasks: Sequence[Task]) -> dict[Task, Some[np.ndarray]]:
    """Mark the unlabelled classes of the annotated rows that have any."""
    marked = {}
    for task in tasks:
        partial = [row for row in _annotated(rows, task).tolist() if len(rows[row][f"{task}_unlabelled"])]
        marks = np.zeros((len(partial), index.classes[task]), bool)
        for place, row in enumerate(partial):
            marks[place, rows[row][f"{task}_unlabelled"]] = True
        marked[task] = Some(np.array(partial, np.int64), marks)
    return marked


def _images(samples: Sequence[Sample], size: int) -> np.ndarray:
    """Stack the images of b samples: (b, 3, size, size) uint8."""
    images = [sample["image"].numpy() for sample in samples]
    return np.stack(images) if images else np.zeros((0, 3, size, size), np.uint8)
