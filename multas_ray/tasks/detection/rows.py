"""Annotation of detection, from a stored row to a batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

Array = TypeVar("Array")
PADDING = -1
"""Label of an empty slot of a batch."""


class UnitBoxes(NamedTuple, Generic[Array]):
    """Boxes of k images, padded to the largest number M of boxes in one: arrays in a batch, tensors in a loss."""

    boxes: Array
    """(k, M, 4) float32, x1 y1 x2 y2 in [0, 1] of the image's sides."""
    labels: Array
    """(k, M) int64, 0..C-1, or PADDING."""
    difficult: Array
    """(k, M) bool."""


class PixelBoxes(NamedTuple):
    """Boxes of one image in its own pixels."""

    boxes: np.ndarray
    """(n, 4) float32, x1 y1 x2 y2."""
    labels: np.ndarray
    """(n,) int64."""
    difficult: np.ndarray
    """(n,) bool."""


def decode(row: Mapping[str, Any], classes: int) -> dict[str, np.ndarray]:
    """Return boxes (n, 4) float32, labels (n,) int64 and difficult (n,) bool of a row; `read_row` has checked them."""
    return {
        "boxes": np.array(row["boxes"], np.float32),
        "labels": np.array(row["labels"], np.int64),
        "difficult": np.array(row["difficult"], bool),
    }


def collate(samples: Sequence[Mapping[str, Any]], size: int) -> UnitBoxes[np.ndarray]:
    """Collate the boxes of k samples, in pixels of their `size` x `size` images; k may be 0."""
    most = max((len(sample["boxes"]) for sample in samples), default=0)
    batch: UnitBoxes[np.ndarray] = UnitBoxes(
        np.zeros((len(samples), most, 4), np.float32),
        np.full((len(samples), most), PADDING, np.int64),
        np.zeros((len(samples), most), bool),
    )
    for place, sample in enumerate(samples):
        count = len(sample["boxes"])
        batch.boxes[place, :count] = np.asarray(sample["boxes"]) / size
        batch.labels[place, :count] = np.asarray(sample["labels"])
        batch.difficult[place, :count] = np.asarray(sample["difficult"])
    return batch


def original(sample: Mapping[str, Any]) -> PixelBoxes:
    """Return the boxes of one sample in the pixels of its image."""
    return PixelBoxes(*(np.asarray(sample[name]) for name in PixelBoxes._fields))
