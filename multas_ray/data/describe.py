"""Description of a split: rows by task mask, objects and pixels by class, and a selection of rows to show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from multas_ray.config import TASK_MASKS, TaskMask
from multas_ray.data.index import Index
from multas_ray.data.read import group_of
from multas_ray.data.reject import Reject
from multas_ray.data.schema import SCHEMA, DatasetInfo
from multas_ray.tasks.segmentation.rows import decode_mask

NO_MASK = np.zeros(0, np.uint8)
"""Mask of a row without one: no pixels."""
COLUMNS = [name for name in SCHEMA.names if name != "image"]
"""Columns that are counted."""


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one split. Arrays have one entry a class; those of pixels one entry a mask value (256)."""

    rows: dict[TaskMask, int]
    """Number of rows by task mask."""
    boxes: np.ndarray
    """(C_det,) int64: boxes, difficult ones included."""
    difficult: np.ndarray
    """(C_det,) int64: difficult boxes."""
    box_images: np.ndarray
    """(C_det,) int64: images with a box of the class."""
    pixels: np.ndarray
    """(256,) int64: mask pixels."""
    pixel_images: np.ndarray
    """(256,) int64: images with a pixel of the class."""
    rejected: list[Reject]
    """Rows that break the data contract; only their task mask is counted. Images are not decoded."""


def count(index: Index, info: DatasetInfo, advance: Callable[[int], None]) -> SplitCounts:
    """Count rows, objects and pixels of a split, one row group at a time.

    Args:
        index: index of the split.
        info: description of the data set.
        advance: called with the number of rows counted since the last call.

    Raises:
        UserError: a file of the split is missing or broken.
    """
    classes = len(info.det_classes)
    boxes, difficult, box_images = (np.zeros(classes, np.int64) for _ in range(3))
    pixels, pixel_images = (np.zeros(256, np.int64) for _ in range(2))
    rejected: list[Reject] = []
    for first in index.block_starts[:-1].tolist():
        group = group_of(index, first, COLUMNS)
        for place in range(len(group)):
            try:
                row = group.row(place)
                mask = decode_mask(row, len(index.seg_classes)) if row["has_seg"] else NO_MASK
            except Reject as reject:
                rejected.append(Reject(reject.reason, reject.detail, group.ids[place] or f"row {first + place}"))
                continue
            per_class, per_value = (
                np.bincount(row["labels"], minlength=classes),
                np.bincount(mask.ravel(), minlength=256),
            )
            boxes += per_class
            box_images += per_class > 0
            difficult += np.bincount(row["labels"][row["difficult"]], minlength=classes)
            pixels += per_value
            pixel_images += per_value > 0
        advance(len(group))
    rows = {mask: len(index.rows([mask])) for mask in TASK_MASKS}
    return SplitCounts(rows, boxes, difficult, box_images, pixels, pixel_images, rejected)


def choose(index: Index, samples: int, seed: int, masks: Sequence[TaskMask] = TASK_MASKS) -> list[int]:
    """Draw rows to show.

    Args:
        index: index of the split.
        samples: number of rows to draw.
        seed: seed of the choice.
        masks: task masks to draw from, as equally as their numbers of rows allow.

    Returns:
        Rows of the index, grouped by mask.
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for rows in (index.rows([mask]) for mask in masks):
        places = generator.choice(len(rows), min(samples, len(rows)), replace=False)
        drawn.append(rows.at(places).tolist())
    # Turn by turn one row of every mask, until there are enough.
    turns = sorted((turn, mask, row) for mask, rows in enumerate(drawn) for turn, row in enumerate(rows))
    return [row for _, _, row in sorted(turns[:samples], key=lambda chosen: chosen[1])]
