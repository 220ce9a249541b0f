"""What a split holds: rows by task mask, objects and pixels by class, and a choice of rows to look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
from torchvision.io import decode_image

from multas_ray.data.index import Index
from multas_ray.data.schema import IGNORE, TASK_MASKS, DatasetInfo, TaskMask
from multas_ray.errors import UserError
from multas_ray.storage import StoragePath

BATCH_ROWS = 64
"""Rows in memory at a time; their images are not read."""


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one split. Arrays have an entry a class, those of pixels an entry a mask value (256)."""

    rows: dict[TaskMask, int]
    """By task mask."""
    boxes: np.ndarray
    """(C_det,) int64: boxes, difficult ones among them."""
    difficult: np.ndarray
    """(C_det,) int64: difficult boxes."""
    box_images: np.ndarray
    """(C_det,) int64: images with a box of the class."""
    pixels: np.ndarray
    """(256,) int64: mask pixels."""
    pixel_images: np.ndarray
    """(256,) int64: images with a pixel of the class."""


def count(index: Index, info: DatasetInfo, advance: Callable[[int], None]) -> SplitCounts:
    """Go through a split once, a few rows at a time.

    Args:
        advance: called with the number of rows that were counted since the last call.

    Raises:
        UserError: a label or a mask value is no class of the data set, or a mask cannot be decoded.
    """
    classes = len(info.det_classes)
    boxes, difficult, box_images = (np.zeros(classes, np.int64) for _ in range(3))
    pixels, pixel_images = (np.zeros(256, np.int64) for _ in range(2))
    filesystem = StoragePath(index.path).filesystem
    for file in index.files:
        with filesystem.open_input_file(file) as source, pq.ParquetFile(source) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=["image_id", "labels", "difficult", "mask"]):
                for row in batch.to_pylist():
                    _check(row["image_id"], "label", row["labels"], range(classes))
                    labels = np.asarray(row["labels"], np.int64)
                    per_class = np.bincount(labels, minlength=classes)
                    boxes += per_class
                    box_images += per_class > 0
                    difficult += np.bincount(labels[np.asarray(row["difficult"], bool)], minlength=classes)
                    if row["mask"] is not None:
                        per_value = _histogram(row["image_id"], row["mask"])
                        found = [value for value in np.flatnonzero(per_value).tolist() if value != IGNORE]
                        _check(row["image_id"], "mask value", found, range(len(info.seg_classes)))
                        pixels += per_value
                        pixel_images += per_value > 0
                advance(batch.num_rows)
    by_mask = np.bincount(index.task_mask, minlength=len(TASK_MASKS)).tolist()
    rows = dict(zip(TASK_MASKS, by_mask, strict=True))
    return SplitCounts(rows, boxes, difficult, box_images, pixels, pixel_images)


def choose(index: Index, samples: int, seed: int, masks: Sequence[TaskMask] = TASK_MASKS) -> list[int]:
    """Draw rows to look at, as equally from these task masks as their numbers allow, grouped by mask."""
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(index.rows([mask])).tolist() for mask in masks]
    # Turn by turn one row of every mask, until there are enough.
    turns = sorted((turn, mask, row) for mask, rows in enumerate(shuffled) for turn, row in enumerate(rows))
    return [row for _, _, row in sorted(turns[:samples], key=lambda chosen: chosen[1])]


def _check(image_id: str, what: str, values: Sequence[int], allowed: range) -> None:
    for value in values:
        if value not in allowed:
            raise UserError(f"row {image_id}: {what} {value}, but dataset.json allows 0..{len(allowed) - 1}")


def _histogram(image_id: str, mask: bytes) -> np.ndarray:
    """(256,) int64: pixels by value of an encoded mask."""
    try:
        values = decode_image(torch.frombuffer(bytearray(mask), dtype=torch.uint8))
    except RuntimeError as error:
        raise UserError(f"row {image_id}: the mask is not an image ({str(error).splitlines()[0]})") from None
    return np.bincount(values.flatten().numpy(), minlength=256)
