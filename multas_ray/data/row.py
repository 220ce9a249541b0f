"""One image with its annotation as a reader found it, and the checks that make it a row of a data set."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from multas_ray.config import Task
from multas_ray.data.image import Stored, to_stored, turn_boxes, turn_mask
from multas_ray.data.reject import Reject
from multas_ray.data.schema import IGNORE, TASK_MASKS, TaskMask


@dataclass
class Row:
    """One image as a reader found it: nothing in it is checked yet."""

    image_id: str
    image: bytes
    """The encoded file."""
    height: int | None
    """As the annotation states it, in pixels; None: it does not say."""
    width: int | None
    has_det: bool = False
    has_seg: bool = False
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    """(N, 4) float32, x1 y1 x2 y2 in pixels, continuous."""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """(N,) int32."""
    difficult: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) bool."""
    mask: np.ndarray | None = None
    """(H, W) uint8 class ids, where has_seg."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was mended, left out or taken for something, to be counted over a split: phrase -> number of objects."""
    exif: bool = True
    """Whether the image is turned as its EXIF says. Those of a data set are upright already."""

    @property
    def task_mask(self) -> TaskMask:
        """What the row is annotated for."""
        return TASK_MASKS[self.has_det + 2 * self.has_seg]

    def only(self, task: Task | None) -> "Row":
        """The row without the annotation of every task but this one."""
        kept = replace(self)
        if task != "seg":
            kept.has_seg, kept.mask = False, None
        if task != "det":
            kept.has_det = False
            kept.boxes, kept.labels, kept.difficult = self.boxes[:0], self.labels[:0], self.difficult[:0]
        return kept


def attempt(image_id: str, read: Callable[[], Row]) -> Row | Reject:
    """Read a row; where that fails, the reason takes its place."""
    try:
        return read()
    except Reject as reject:
        return Reject(reject.reason, reject.detail, image_id)


def check_row(row: Row, det_classes: int, seg_classes: int) -> Row:
    """A row that keeps the data contract: its image upright, its annotation turned with it where that was made on the
    image as its file lies, and its boxes inside the image. What was mended is among its notes.

    Args:
        row: as read.
        det_classes: number of object classes.
        seg_classes: number of pixel classes, with background.

    Raises:
        Reject: the row breaks the contract in a way that cannot be mended.
    """
    if row.has_seg != (row.mask is not None) or (len(row.boxes) and not row.has_det):
        raise ValueError(f"{row.image_id}: annotation and task mask contradict each other")
    image = to_stored(row.image, exif=row.exif)
    row = _turned(row, image)
    if row.mask is not None:
        _check_mask(row.mask, image.height, image.width, seg_classes)
    if ((row.labels < 0) | (row.labels >= det_classes)).any():
        raise Reject("unknown class", f"labels {sorted(set(row.labels.tolist()))} of {det_classes} classes")
    return _clipped(replace(row, image=image.data, height=image.height, width=image.width), image.height, image.width)


def _turned(row: Row, image: Stored) -> Row:
    """The annotation in the frame of the upright image. One that fits both frames, as of a square image, was made on
    the upright one, which is what nearly all tools show."""
    upright, filed = (image.height, image.width), image.file_size
    turned = replace(row, notes=row.notes + Counter({"images turned upright with their annotation": 1}))
    stated = (upright[0] if row.height is None else row.height, upright[1] if row.width is None else row.width)
    if stated not in (upright, filed):
        raise Reject("annotation of another size", _sizes(stated, image))
    boxes_too = stated != upright
    mask_too = row.mask is not None and row.mask.shape == filed != upright
    if boxes_too:
        turned.boxes = turn_boxes(row.boxes, *filed, image.orientation)
    if row.mask is not None and mask_too:
        turned.mask = turn_mask(row.mask, image.orientation)
    return turned if boxes_too or mask_too else row


def _sizes(found: tuple[int, ...], image: Stored) -> str:
    own = f"the image has {image.width}x{image.height}"
    turned = " (its file is turned by EXIF)" if image.file_size != (image.height, image.width) else ""
    return f"{found[1]}x{found[0]}, {own}{turned}"


def _clipped(row: Row, height: int, width: int) -> Row:
    """The row with its boxes clipped to the image, without those that are no boxes of it."""
    boxes = row.boxes.astype(np.float32).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise Reject("broken box", f"{boxes[~np.isfinite(boxes).all(axis=1)][0].tolist()}: not numbers")
    x1, y1, x2, y2 = boxes.T
    clipped = boxes.clip(0, np.array([width, height, width, height], np.float32))
    inverted = (x2 < x1) | (y2 < y1)
    empty = ~inverted & ((x2 == x1) | (y2 == y1))
    keep = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    found = {
        "boxes clipped at the image's edge": keep & (clipped != boxes).any(axis=1),
        "boxes dropped: without area": empty,
        "boxes dropped: inverted": inverted,
        "boxes dropped: outside their image": ~keep & ~inverted & ~empty,
    }
    notes = row.notes + Counter({name: int(which.sum()) for name, which in found.items()})
    return replace(row, boxes=clipped[keep], labels=row.labels[keep], difficult=row.difficult[keep], notes=notes)


def _check_mask(mask: np.ndarray, height: int, width: int, classes: int) -> None:
    if mask.shape != (height, width):
        raise Reject("mask of another size", f"{mask.shape[1]}x{mask.shape[0]}, the image has {width}x{height}")
    ids = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unknown = [int(i) for i in ids if i >= classes and i != IGNORE]
    if unknown:
        raise Reject("unknown class", f"mask holds {unknown}, there are {classes} classes")
