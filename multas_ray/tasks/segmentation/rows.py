"""Segmentation's annotation from a stored row to a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multas_ray.data.pillow import decode_labels
from multas_ray.data.reject import Reject


def decode(row: Mapping[str, Any], classes: int) -> dict[str, np.ndarray]:
    """See `TaskRows`."""
    return {"mask": decode_mask(row, classes)}


def decode_mask(row: Mapping[str, Any], classes: int) -> np.ndarray:
    """(H, W) uint8: the mask of a row that has one.

    Raises:
        Reject: the mask is broken, or of another size than the row says, or a pixel is of no class.
    """
    mask = decode_labels(row["mask"], size=(row["height"], row["width"]))
    # One added, 255 ("ignore") is 0: one pass finds the greatest of the others.
    if (mask + np.uint8(1)).max() > classes:
        values = [value for value in np.unique(mask).tolist() if classes <= value < 255]
        raise Reject("unknown class", f"mask values {values}, {classes} classes are in dataset.json")
    return mask


def collate(samples: Sequence[Mapping[str, Any]], size: int) -> np.ndarray:
    """See `TaskRows`: masks (k, size, size) uint8 class ids, 255 = ignore."""
    masks = [np.asarray(sample["mask"]) for sample in samples]
    return np.stack(masks) if masks else np.zeros((0, size, size), np.uint8)


def original(sample: Mapping[str, Any]) -> np.ndarray:
    """See `TaskRows`: the mask (H, W) uint8."""
    return np.asarray(sample["mask"])
