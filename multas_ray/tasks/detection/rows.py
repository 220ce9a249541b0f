"""Detection's annotation from a stored row to a batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

Array = TypeVar("Array")
PADDING = -1
"""Label of a slot of a batch that holds no box."""


class UnitBoxes(NamedTuple, Generic[Array]):
    """The boxes of k images, padded to as many as the fullest has: arrays in a batch, tensors where a loss takes
    them."""

    boxes: Array
    """(k, M, 4) float32, x1 y1 x2 y2 in [0, 1] of the image's sides."""
    labels: Array
    """(k, M) int64, 0..C-1, or PADDING."""
    difficult: Array
    """(k, M) bool."""


class PixelBoxes(NamedTuple):
    """The boxes of one image in its own pixels."""

    boxes: np.ndarray
    """(n, 4) float32, x1 y1 x2 y2."""
    labels: np.ndarray
    """(n,) int64."""
    difficult: np.ndarray
    """(n,) bool."""


def decode(row: Mapping[str, Any], classes: int) -> dict[str, np.ndarray]:
    """See `TaskRows`: boxes (n, 4) float32, labels (n,) int64 and difficult (n,) bool, checked where they were read."""
    return {
        "boxes": np.array(row["boxes"], np.float32),
        "labels": np.array(row["labels"], np.int64),
        "difficult": np.array(row["difficult"], bool),
    }


def collate(samples: Sequence[Mapping[str, Any]], size: int) -> UnitBoxes[np.ndarray]:
    """See `TaskRows`."""
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
    """See `TaskRows`."""
    return PixelBoxes(*(np.asarray(sample[name]) for name in PixelBoxes._fields))
