"""Random training batches, tiny configurations, and what a data task adds to a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multas_ray.config import TASKS, Config, Task
from multas_ray.config_file import parse_config
from multas_ray.data.batch import Compared, Some, TrainBatch, take
from multas_ray.data.plan import Part
from multas_ray.tasks import PARTS
from multas_ray.tasks.bombo.rows import weak_tasks
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.teacher.selection import SelectDistilled

DET, SEG = ["cat", "dog", "cow"], ["background", "cat", "dog", "cow"]
CLASSES = {"det": DET, "seg": SEG}
SIZE = 64
EVERY_LOSS = {
    "model": {
        **{"preset": "paper", "backbone": "resnet18", "pretrained": False, "width": 32, "norm": "group"},
        **{"neck": "pafpn", "adapter": 32},
    },
    "loss": {
        **{"matching": "mutual_guidance", "classification": "generalized_focal"},
        **{"weak_det": 0.5, "weak_seg": 0.5},
    },
    "distill": {
        "det": {"on": "all", "soft_cls": 1e-3, "soft_box": 1, "mse": 1, "pdf": 1, "defeat": 1},
        "seg": {"on": "all", "cwd": 1},
    },
}
"""The paper's network with all losses."""


def config_of(**sections: Any) -> Config:
    """A tiny network with two teachers; keyword arguments replace whole sections."""
    tree = {
        "data": {"path": "memory", "size": SIZE},
        "model": {"backbone": "efficientnet_lite0", "pretrained": False, "width": 16, "norm": "group"},
        "teachers": {"det": {"checkpoint": "-"}, "seg": {"checkpoint": "-"}},
        "train": {"run": "-", "steps": 1, "batch_size": 6},
    } | sections
    return parse_config(tree | {"train": {"precision": "float32"} | tree["train"]})


def part_of(rows: int, step: int = 0, rank: int = 0, size: int = SIZE) -> Part:
    """A part of the first rows of a split."""
    numbers = np.arange(rows)
    return Part(step, rank, size, numbers, numbers * 0, numbers * 0, numbers.astype(np.uint64))


def bare_batch(images: np.ndarray, step: int = 0, rank: int = 0, **fields: Any) -> TrainBatch:
    """Images (b, 3, size, size) without annotation."""
    part = part_of(len(images), step, rank, images.shape[-1])
    truth = {task: Some(np.zeros(0, np.int64), PARTS[task].rows.collate([], part.size)) for task in TASKS}
    ids = tuple(f"image {row}" for row in part.rows)
    return replace(TrainBatch(part=part, ids=ids, images=images, truth=truth), **fields)


def batch_of(masks: Sequence[str], seed: int = 0, step: int = 0) -> TrainBatch:
    """Random images with these task masks (det, seg, both or none), and weak annotation where it can be."""
    random = np.random.default_rng(seed)
    rows = len(masks)
    det = np.flatnonzero([mask in ("det", "both") for mask in masks])
    seg = np.flatnonzero([mask in ("seg", "both") for mask in masks])
    corner = random.uniform(0, 0.5, (rows, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + random.uniform(0.2, 0.5, (rows, 2, 2)).astype(np.float32)], axis=2)
    labels = random.integers(0, 3, (rows, 2))
    nothing = np.zeros((rows, 2), bool)
    images = random.integers(0, 256, (rows, 3, SIZE, SIZE), dtype=np.uint8)
    pixels = random.integers(0, 4, (rows, SIZE, SIZE), dtype=np.uint8)
    components = UnitBoxes(boxes[::-1], random.integers(-1, 3, (rows, 2)), nothing)
    coarse = random.integers(0, 4, (rows, SIZE // 4, SIZE // 4), dtype=np.uint8)
    whole = np.arange(rows)

    def some(chosen: np.ndarray, values: Any) -> Some:
        return Some(chosen, Some(whole, values).at(chosen))

    return bare_batch(
        images,
        step,
        truth={"det": some(det, UnitBoxes(boxes, labels, nothing)), "seg": some(seg, pixels)},
        weak={"det": some(np.setdiff1d(seg, det), components), "seg": some(np.setdiff1d(det, seg), coarse)},
    )


def made_for(batch: TrainBatch, config: Config, known: Mapping[Task, np.ndarray] | None = None) -> TrainBatch:
    """The batch as a data task makes it for a run: with the rows to distil, and the weak annotation it asks for."""
    weak = {task: batch.weak[task] for task in weak_tasks(config)}
    weak_unlabelled = {task: batch.weak_unlabelled[task] for task in weak if task in batch.weak_unlabelled}
    select = SelectDistilled(config, CLASSES, known or {})
    return select(replace(batch, weak=weak, weak_unlabelled=weak_unlabelled))


def every_class(task: Task, rows: Sequence[int] | np.ndarray) -> Some[Compared]:
    """Rows that are distilled on all classes of a task."""
    marks = np.ones((len(rows), len(CLASSES[task])), bool)
    return Some(np.array(rows, np.int64), Compared(marks, ~marks))


def with_unlabelled(batch: TrainBatch, classes: Mapping[Task, Mapping[int, Sequence[int]]]) -> TrainBatch:
    """The batch with unlabelled classes of a task in some of its annotated rows, and so in their weak annotation."""
    marks: dict[Task, Some[np.ndarray]] = {}
    for task in TASKS:
        by_row = classes.get(task, {})
        rows = [row for row in sorted(by_row) if row in batch.truth[task].rows]
        values = np.zeros((len(rows), len(CLASSES[task])), bool)
        for place, row in enumerate(rows):
            values[place, list(by_row[row])] = True
        marks[task] = Some(np.array(rows, np.int64), values)
    weak_det = np.intersect1d(marks["seg"].rows, batch.weak["det"].rows)
    weak_seg = np.intersect1d(marks["det"].rows, batch.weak["seg"].rows)
    background = np.zeros((len(weak_seg), 1), bool)
    weak: dict[Task, Some[np.ndarray]] = {
        "det": Some(weak_det, marks["seg"].at(weak_det)[:, 1:]),
        "seg": Some(weak_seg, np.concatenate([background, marks["det"].at(weak_seg)], axis=1)),
    }
    return replace(batch, unlabelled=marks, weak_unlabelled=weak)


def share(batch: TrainBatch, rows: Sequence[int]) -> TrainBatch:
    """Some rows of a batch, as a worker gets them."""
    chosen = np.array(rows, np.int64)

    def some(each: Some) -> Some:
        inside = np.flatnonzero(np.isin(chosen, each.rows))
        return Some(inside, each.at(chosen[inside]))

    return replace(
        batch,
        part=batch.part.at(rows),
        ids=take(batch.ids, chosen),
        images=batch.images[chosen],
        truth={task: some(each) for task, each in batch.truth.items()},
        unlabelled={task: some(each) for task, each in batch.unlabelled.items()},
        weak={task: some(each) for task, each in batch.weak.items()},
        weak_unlabelled={task: some(each) for task, each in batch.weak_unlabelled.items()},
        distil={},
    )
