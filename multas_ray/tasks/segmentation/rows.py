"""Annotation of segmentation, from a stored row to a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multas_ray.data.pillow import decode_labels
from multas_ray.data.reject import Reject


def decode(row: Mapping[str, Any], classes: int) -> dict[str, np.ndarray]:
    """Decode the mask (H, W) uint8 of a row that has one; see `decode_mask`."""
    return {"mask": decode_mask(row, classes)}


def decode_mask(row: Mapping[str, Any], classes: int) -> np.ndarray:
    """Decode the mask of a row that has one.

    Args:
        row: values of the row, as `read_row` returns them.
        classes: number of classes; mask values are below it, or 255.

    Returns:
        (H, W) uint8.

    Raises:
        Reject: the mask is broken, or of another size than the row says, or a pixel has an unknown class.
    """
    mask = decode_labels(row["mask"], size=(row["height"], row["width"]))
    # One added, 255 ("ignore") is 0: one pass finds the greatest of the others.
    if (mask + np.uint8(1)).max() > classes:
        values = [value for value in np.unique(mask).tolist() if classes <= value < 255]
        raise Reject("unknown class", f"mask values {values}, {classes} classes are in dataset.json")
    return mask


def collate(samples: Sequence[Mapping[str, Any]], size: int) -> np.ndarray:
    """Stack the masks of k samples: (k, size, size) uint8 class ids, 255 = ignore; k may be 0."""
    masks = [np.asarray(sample["mask"]) for sample in samples]
    return np.stack(masks) if masks else np.zeros((0, size, size), np.uint8)


def original(sample: Mapping[str, Any]) -> np.ndarray:
    """Return the mask (H, W) uint8 of one sample."""
    return np.asarray(sample["mask"])
