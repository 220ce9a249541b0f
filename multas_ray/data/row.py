"""Row of a data set: one image with its annotation as a reader delivers it, and the checks that it must pass."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from multas_ray.config import Task
from multas_ray.data.image import Stored, to_stored
from multas_ray.data.pillow import turn_boxes, turn_mask
from multas_ray.data.reject import Reject
from multas_ray.data.schema import IGNORE, TASK_MASKS, TaskMask


@dataclass
class Row:
    """One image with its annotation as a reader delivers it: nothing is checked yet."""

    image_id: str
    image: bytes
    """Bytes of the encoded file."""
    height: int | None
    """Height in pixels as the annotation states it; None if it does not."""
    width: int | None
    """Width in pixels as the annotation states it; None if it does not."""
    has_det: bool = False
    has_seg: bool = False
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    """(N, 4) float32: boxes x1 y1 x2 y2 in pixels, continuous."""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """(N,) int32: class of each box."""
    difficult: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) bool: boxes that are not scored and not penalised."""
    mask: np.ndarray | None = None
    """(H, W) uint8: class ids of the pixels; None where has_seg is false."""
    notes: Counter[str] = field(default_factory=Counter)
    """Repairs, omissions and assumptions, counted over a split: phrase -> number of objects."""
    exif: bool = True
    """Whether to turn the image as its EXIF says. Images of a data set are upright already."""

    @property
    def task_mask(self) -> TaskMask:
        """Tasks that the row is annotated for."""
        return TASK_MASKS[self.has_det + 2 * self.has_seg]

    def only(self, task: Task | None) -> "Row":
        """Return the row with the annotation of one task only, or of none."""
        row = replace(self)
        if task != "seg":
            row.has_seg, row.mask = False, None
        if task != "det":
            row.has_det = False
            row.boxes, row.labels, row.difficult = self.boxes[:0], self.labels[:0], self.difficult[:0]
        return row


def attempt(image_id: str, read: Callable[[], Row]) -> Row | Reject:
    """Read a row. If it cannot be used, the reason, with the image's id, is returned in its place."""
    try:
        return read()
    except Reject as reject:
        return Reject(reject.reason, reject.detail, image_id)


def check_row(row: Row, det_classes: int, seg_classes: int) -> Row:
    """Make a row that keeps the data contract: upright image, boxes inside it, known classes.

    An annotation that was made on the image as its file stores it is turned upright with the image. Repairs are added
    to the row's notes.

    Args:
        row: row as read.
        det_classes: number of object classes.
        seg_classes: number of pixel classes, background included.

    Raises:
        Reject: the row breaks the contract in a way that cannot be repaired.
        ValueError: annotation and task mask contradict each other.
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
    """Turn the annotation into the frame of the upright image.

    An annotation that fits both frames, as of a square image, is taken to be made on the upright image, which nearly
    all tools show.
    """
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


def _sizes(stated: tuple[int, ...], image: Stored) -> str:
    turned = " (its file is turned by EXIF)" if image.file_size != (image.height, image.width) else ""
    return f"{stated[1]}x{stated[0]}, the image has {image.width}x{image.height}{turned}"


def _clipped(row: Row, height: int, width: int) -> Row:
    """Clip a row's boxes to the image, and drop those that are inverted, empty or outside."""
    boxes = row.boxes.astype(np.float32).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise Reject("broken box", f"{boxes[~np.isfinite(boxes).all(axis=1)][0].tolist()}: not numbers")
    x1, y1, x2, y2 = boxes.T
    clipped = boxes.clip(0, np.array([width, height, width, height], np.float32))
    inverted = (x2 < x1) | (y2 < y1)
    empty = ~inverted & ((x2 == x1) | (y2 == y1))
    keep = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    repairs = {
        "boxes clipped at the image's edge": keep & (clipped != boxes).any(axis=1),
        "boxes dropped: without area": empty,
        "boxes dropped: inverted": inverted,
        "boxes dropped: outside their image": ~keep & ~inverted & ~empty,
    }
    notes = row.notes + Counter({name: int(which.sum()) for name, which in repairs.items()})
    return replace(row, boxes=clipped[keep], labels=row.labels[keep], difficult=row.difficult[keep], notes=notes)


def _check_mask(mask: np.ndarray, height: int, width: int, classes: int) -> None:
    if mask.shape != (height, width):
        raise Reject("mask of another size", f"{mask.shape[1]}x{mask.shape[0]}, the image has {width}x{height}")
    ids = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unknown = [int(i) for i in ids if i >= classes and i != IGNORE]
    if unknown:
        raise Reject("unknown class", f"mask holds {unknown}, there are {classes} classes")
