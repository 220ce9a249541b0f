"""Annotation of segmentation: its column, the checks, and the way from a stored row to a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from multas_ray.data.columns import ClassMask, Fault, is_null, missing
from multas_ray.data.pillow import TURNED, decode_labels, turn_mask
from multas_ray.data.reject import Reject

if TYPE_CHECKING:
    from multas_ray.data.classes import ClassMap
    from multas_ray.data.geometry import View
    from multas_ray.data.image import Stored
    from multas_ray.data.row import Row

IGNORE = 255
"""Mask value of a pixel that is ignored by all losses and metrics."""
BACKGROUND = "background"
"""Name of the class, always the first, of pixels that no other class was found in. There need be none."""
VOID_PIXELS = "mask pixels that the masks themselves ignore (void)"
"""Note of a row, in pixels: those that are 255 by the files' own word, and not because a class is not kept."""
FIELDS = (
    pa.field("mask", pa.binary(), nullable=True),
    pa.field("seg_unlabelled", pa.list_(pa.int32()), nullable=True),
)
"""Columns of a shard: a PNG of uint8 class ids, 255 = ignore, null where has_seg is false; classes that nobody looked
for."""
MAY_BE_MISSING = ("mask", "seg_unlabelled")
"""Columns that a shard without masks, or without unlabelled classes, need not have."""


def check(row: Row, image: Stored, classes: int) -> Row:
    """Turn a mask upright with the image, and check its size and values.

    Args:
        row: row as read.
        image: its image, upright.
        classes: number of pixel classes; mask values are below it, or 255.

    Raises:
        Reject: the mask is of another size than the image, or a pixel has an unknown class.
        ValueError: mask and has_seg contradict each other.
    """
    if row.has_seg != (row.mask is not None):
        raise ValueError(f"{row.image_id}: has_seg is {row.has_seg}, with{'out' * (row.mask is None)} a mask")
    mask, notes, upright = row.mask, row.notes, (image.height, image.width)
    if mask is None:
        return row
    if mask.shape == image.file_size != upright:
        mask, notes = turn_mask(mask, image.orientation), notes | TURNED
    if mask.shape != upright:
        raise Reject(
            "mask of another size", f"{mask.shape[1]}x{mask.shape[0]}, the image has {upright[1]}x{upright[0]}"
        )
    ids = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unknown = [int(i) for i in ids if i >= classes and i != IGNORE]
    if unknown:
        raise Reject("unknown class", f"mask holds {unknown}, there are {classes} classes")
    return replace(row, mask=mask, notes=notes)


class Columns:
    """Columns of a row group of N rows: encoded masks, and unlabelled classes."""

    def __init__(
        self, columns: Mapping[str, pa.ChunkedArray], annotated: np.ndarray, sizes: np.ndarray, classes: int
    ) -> None:
        """Take the columns. Sizes and classes are checked where a mask is decoded.

        Args:
            columns: the shard's columns by name; `mask` may be missing.
            annotated: (N,) bool: rows that are annotated with a mask.
            sizes: (N, 2) int32: height and width of the images in pixels.
            classes: number of pixel classes.
        """
        self.annotated = annotated
        # Not combined into one chunk: the masks of a large group may exceed the limit of one.
        self.mask = columns.get("mask")
        self.class_mask = ClassMask("seg_unlabelled", columns, annotated, classes)

    def values(self, place: int) -> dict[str, Any]:
        """Return the encoded mask of a row, None where it is not annotated, and its unlabelled classes."""
        mask = self.mask[place].as_py() if self.mask is not None and self.annotated[place] else None
        return {"mask": mask} | self.class_mask.values(place)

    def faults(self) -> Iterator[Fault]:
        """Find the annotated rows without a mask, or whose class masks break the data contract."""
        yield from self.class_mask.faults()
        yield missing("mask", self.annotated if self.mask is None else self.annotated & is_null(self.mask))


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
        values = [value for value in np.unique(mask).tolist() if classes <= value < IGNORE]
        raise Reject("unknown class", f"mask values {values}, {classes} classes are in dataset.json")
    return mask


def translate(annotation: Mapping[str, np.ndarray], classes: ClassMap) -> dict[str, np.ndarray]:
    """Translate a mask to the classes of a run over several data sets; pixels of a class that is ignored are 255."""
    values = np.full(256, IGNORE, np.uint8)
    values[: len(classes.targets)] = [IGNORE if target is None else target for target in classes.targets]
    return {"mask": values[annotation["mask"]]}


def seen(sample: Mapping[str, Any], view: View, size: int) -> dict[str, np.ndarray]:
    """Return the mask in the pixels of the square; beyond the image it is ignored."""
    return {"mask": view.nearest(sample["mask"], size, IGNORE)} if "mask" in sample else {}


def collate(samples: Sequence[Mapping[str, Any]], size: int) -> np.ndarray:
    """Stack the masks of k samples: (k, size, size) uint8 class ids, 255 = ignore; k may be 0."""
    masks = [sample["mask"] for sample in samples]
    return np.stack(masks) if masks else np.zeros((0, size, size), np.uint8)


def hides(classes: Sequence[str]) -> bool:
    """Whether annotation can hide objects of an unlabelled class: background may be one, another class cannot."""
    return list(classes[:1]) == [BACKGROUND]


def original(sample: Mapping[str, Any]) -> np.ndarray:
    """Return the mask (H, W) uint8 of one sample."""
    mask: np.ndarray = sample["mask"]
    return mask
