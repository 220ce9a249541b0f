"""Annotation of detection: its columns, their checks, and the way from a stored row to a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from multas_ray.data.columns import ClassMask, Fault, Lists, integers, missing, quadruples, truths
from multas_ray.data.pillow import TURNED, turn_boxes
from multas_ray.data.reject import Reject

if TYPE_CHECKING:
    from multas_ray.data.classes import ClassMap
    from multas_ray.data.geometry import View
    from multas_ray.data.image import Stored
    from multas_ray.data.row import Row

FIELDS = (
    pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
    pa.field("labels", pa.list_(pa.int32()), nullable=False),
    pa.field("difficult", pa.list_(pa.bool_()), nullable=False),
    pa.field("det_unlabelled", pa.list_(pa.int32()), nullable=True),
)
"""Columns of a shard: x1 y1 x2 y2 in pixels, continuous; 0..C-1; boxes that are not scored and not penalised; classes
that nobody looked for."""
MAY_BE_MISSING = ("difficult", "det_unlabelled")
"""Columns that a shard without difficult boxes, or without unlabelled classes, need not have."""
SLACK = 1.0
"""Pixels by which a box may exceed its image; it is clipped. Programs that count pixels from 1, or take a box's last
pixel for its end, differ by one. Boxes in other coordinates, or for another size of the image, exceed it by more."""
Array = TypeVar("Array")
PADDING = -1
"""Label of an empty slot of a batch."""
IGNORED = -2
"""Label of a box whose class the run ignores, while it is translated."""


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


ROUNDING = 0.1
"""Pixels that a box may lie beyond its image without being told as clipped: files hold centres and sizes in few digits,
and half the boxes that end at the edge end a ten-thousandth beyond it."""


def check(row: Row, image: Stored, classes: int) -> Row:
    """Turn boxes upright with the image, clip them to it, and drop those that are inverted, empty or outside.

    Args:
        row: row as read, with the height and width of the frame in which it was annotated.
        image: its image, upright.
        classes: number of object classes.

    Raises:
        Reject: a box is not of numbers, or of an unknown class.
        ValueError: boxes of a row that is not annotated with boxes.
    """
    if len(row.boxes) and not row.has_det:
        raise ValueError(f"{row.image_id}: boxes, but has_det is false")
    if ((row.labels < 0) | (row.labels >= classes)).any():
        raise Reject("unknown class", f"labels {sorted(set(row.labels.tolist()))} of {classes} classes")
    if (row.height, row.width) != (image.height, image.width):
        turned = turn_boxes(row.boxes, *image.file_size, image.orientation)
        row = replace(row, boxes=turned, notes=row.notes | TURNED)
    boxes = row.boxes.astype(np.float32).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise Reject("broken box", f"{boxes[~np.isfinite(boxes).all(axis=1)][0].tolist()}: not numbers")
    x1, y1, x2, y2 = boxes.T
    clipped = boxes.clip(0, np.array([image.width, image.height] * 2, np.float32))
    inverted = (x2 < x1) | (y2 < y1)
    empty = ~inverted & ((x2 == x1) | (y2 == y1))
    keep = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    repairs = {
        "boxes clipped at the image's edge": keep & (np.abs(clipped - boxes) > ROUNDING).any(axis=1),
        "boxes dropped: without area": empty,
        "boxes dropped: inverted": inverted,
        "boxes dropped: outside their image": ~keep & ~inverted & ~empty,
    }
    notes = row.notes + Counter({name: int(which.sum()) for name, which in repairs.items()})
    return replace(row, boxes=clipped[keep], labels=row.labels[keep], difficult=row.difficult[keep], notes=notes)


class Columns:
    """Columns of a row group of N rows: boxes, clipped to their images, with their labels."""

    def __init__(
        self, columns: Mapping[str, pa.ChunkedArray], annotated: np.ndarray, sizes: np.ndarray, classes: int
    ) -> None:
        """Lay the columns out in arrays.

        Args:
            columns: the shard's columns by name; `MAY_BE_MISSING` may be.
            annotated: (N,) bool: rows that are annotated with boxes.
            sizes: (N, 2) int32: height and width of the images in pixels.
            classes: number of object classes.
        """
        self.annotated, self.sizes, self.classes = annotated, sizes, classes
        self.labels = Lists(columns["labels"].combine_chunks(), integers)
        self.raw = Lists(columns["boxes"].combine_chunks(), quadruples)
        if "difficult" in columns:
            self.difficult = Lists(columns["difficult"].combine_chunks(), truths)
        else:
            self.difficult = self.labels.with_values(np.zeros(len(self.labels.values), bool))
        self.class_mask = ClassMask("det_unlabelled", columns, annotated, classes)
        sides = sizes[:, [1, 0, 1, 0]][self.raw.rows].astype(np.float32)
        self.boxes = self.raw.with_values(self.raw.values.clip(0, sides))

    def values(self, place: int) -> dict[str, np.ndarray]:
        """Return boxes (n, 4), labels (n,) and difficult (n,) of a row, and its unlabelled classes.

        All are empty where it is not annotated.
        """
        lists = {"boxes": self.boxes, "labels": self.labels, "difficult": self.difficult}
        values = {name: each.of(place) if self.annotated[place] else each.values[:0] for name, each in lists.items()}
        return values | self.class_mask.values(place)

    def faults(self) -> Iterator[Fault]:
        """Find the annotated rows whose boxes or class masks break the data contract."""
        yield from self.class_mask.faults()
        lists = {"boxes": self.raw, "labels": self.labels, "difficult": self.difficult}
        for name, each in lists.items():
            yield missing(name, self.annotated & each.null)
        lengths = np.stack([each.lengths for each in lists.values()])
        yield Fault(
            self.annotated & (lengths != lengths[0]).any(axis=0),
            "lists of different lengths",
            lambda row: "{} boxes, {} labels, {} difficult".format(*lengths[:, row]),
        )
        boxes, clipped, labels = self.raw.values, self.boxes.values, self.labels.values
        wrong: dict[str, np.ndarray] = {
            "broken box": ~np.isfinite(boxes),
            "box outside its image": np.abs(boxes - clipped) > SLACK,
            "inverted or empty box": clipped[:, 2:] <= clipped[:, :2],
        }
        for reason, corners in wrong.items():
            yield self._wrong_boxes(reason, np.asarray(corners.any(axis=1)))
        unknown = (labels < 0) | (labels >= self.classes)

        def detail(row: int) -> str:
            label = labels[unknown & (self.labels.rows == row)][0].tolist()
            return f"label {label}, {self.classes} classes are in dataset.json"

        yield Fault(self.annotated & self.labels.rows_of(unknown), "unknown class", detail)

    def _wrong_boxes(self, reason: str, wrong: np.ndarray) -> Fault:
        """Fault of the rows with one of the wrong boxes (n,) bool."""

        def detail(row: int) -> str:
            box = self.raw.values[wrong & (self.raw.rows == row)][0].tolist()
            return f"{box} in {self.sizes[row, 1]}x{self.sizes[row, 0]} pixels"

        return Fault(self.annotated & self.raw.rows_of(wrong), reason, detail)


def decode(row: Mapping[str, Any], classes: int) -> dict[str, np.ndarray]:
    """Return boxes (n, 4) float32, labels (n,) int64 and difficult (n,) bool of a row; `read_row` has checked them."""
    return {
        "boxes": np.array(row["boxes"], np.float32),
        "labels": np.array(row["labels"], np.int64),
        "difficult": np.array(row["difficult"], bool),
    }


def translate(annotation: Mapping[str, np.ndarray], classes: ClassMap) -> dict[str, np.ndarray]:
    """Translate labels to the classes of a run over several data sets.

    Where a class is ignored, its box is a difficult one of each class that the data set lists: found there, none of
    them is wrong. Where it is background in the run, its box is left out.
    """
    listed = np.array(classes.listed, np.int64)
    targets = np.array([IGNORED if target is None else target for target in classes.targets], np.int64)
    labels = targets[annotation["labels"]]
    known, unknown = labels >= 0, labels == IGNORED
    ignored = np.repeat(annotation["boxes"][unknown], len(listed), axis=0)
    return {
        "boxes": np.concatenate([annotation["boxes"][known], ignored]),
        "labels": np.concatenate([labels[known], np.tile(listed, np.count_nonzero(unknown))]),
        "difficult": np.concatenate([annotation["difficult"][known], np.ones(len(ignored), bool)]),
    }


def seen(sample: Mapping[str, Any], view: View, size: int) -> dict[str, np.ndarray]:
    """Return the boxes whose centre is seen, in the pixels of the square, if they are a pixel high and wide there."""
    if "boxes" not in sample:
        return {}
    centres = (sample["boxes"][:, :2] + sample["boxes"][:, 2:]) / 2 - np.array([view.left, view.top])
    boxes = view.boxes(sample["boxes"], size)
    kept = ((centres > 0) & (centres < np.array([view.width, view.height]))).all(axis=1)
    kept &= (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    return {"boxes": boxes[kept], "labels": sample["labels"][kept], "difficult": sample["difficult"][kept]}


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
        batch.boxes[place, :count] = sample["boxes"] / size
        batch.labels[place, :count] = sample["labels"]
        batch.difficult[place, :count] = sample["difficult"]
    return batch


def hides(classes: Sequence[str]) -> bool:
    """Whether annotation can hide objects of an unlabelled class: where no box is, they may be."""
    return True


def original(sample: Mapping[str, Any]) -> PixelBoxes:
    """Return the boxes of one sample in the pixels of its image."""
    return PixelBoxes(*(sample[name] for name in PixelBoxes._fields))
