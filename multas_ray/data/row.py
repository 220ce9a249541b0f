"""One image with its annotation as a reader found it, and the checks that make it a row of a data set."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from multas_ray.config import Task
from multas_ray.data.schema import IGNORE, TASK_MASKS, TaskMask

SLACK = 2.0
"""Pixels that a box may lie outside its image and still be clipped instead of rejected."""


class Reject(Exception):
    """A row that cannot be used: raised where that is found out, handed on in the row's place.

    `reason` is one of few short phrases, to be counted; `detail` says what was found.
    """

    def __init__(self, reason: str, detail: str = "", image_id: str = "") -> None:
        super().__init__(reason, detail, image_id)
        self.reason, self.detail, self.image_id = reason, detail, image_id


@dataclass
class Row:
    """One image as a reader found it: nothing in it is checked yet."""

    image_id: str
    image: bytes
    """The encoded file."""
    height: int
    """As the annotation states it, in pixels."""
    width: int
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

    @property
    def task_mask(self) -> TaskMask:
        """What the row is annotated for."""
        return TASK_MASKS[self.has_det + 2 * self.has_seg]

    def only(self, task: Task | None) -> "Row":
        """The row without the annotation of every task but this one."""
        bare = Row(self.image_id, self.image, self.height, self.width)
        if task == "det":
            return replace(self, has_seg=False, mask=None)
        if task == "seg":
            return replace(bare, has_seg=self.has_seg, mask=self.mask)
        return bare


def attempt(image_id: str, read: Callable[[], Row]) -> Row | Reject:
    """Read a row; where that fails, the reason takes its place."""
    try:
        return read()
    except Reject as reject:
        return Reject(reject.reason, reject.detail, image_id)


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        Reject: there is no such file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise Reject("missing image", f"{path.name}: {error.strerror}") from None


@contextmanager
def decoding(reason: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a file it cannot decode into a Reject."""
    try:
        yield
    # A corrupt file meets decoders in states they do not expect: SyntaxError, struct.error and more are on record.
    except Exception as error:
        raise Reject(reason, " ".join(str(error).split()) or type(error).__name__) from None


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in the header of an encoded image.

    Raises:
        Reject: there is no readable header.
    """
    with decoding("broken image"), Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def as_rgb(data: bytes) -> tuple[bytes, int, int]:
    """Decode an image in full and return it as an RGB JPEG or PNG, with height and width in pixels.

    An RGB JPEG or PNG of 8 bits keeps its bytes. Others are encoded anew: JPEG as JPEG (quality 95), the rest as PNG.

    Raises:
        Reject: it is broken, or its mode has no RGB meaning (16-bit grey, float).
    """
    with decoding("broken image"), Image.open(io.BytesIO(data)) as image:
        image.load()
    # Pillow reads 16-bit RGB as 8-bit, other decoders do not. The depth is the 25th byte of every PNG file.
    if image.mode == "RGB" and (image.format == "JPEG" or (image.format == "PNG" and data[24] == 8)):
        return data, image.height, image.width
    # Pillow would clip these to 0..255 and call the result an image.
    if image.mode.startswith(("I", "F")):
        raise Reject("not convertible to RGB", f"mode {image.mode}")
    with decoding("not convertible to RGB"):
        rgb = image.convert("RGB")
    return encode(rgb, "JPEG" if image.format == "JPEG" else "PNG"), image.height, image.width


def encode(image: Image.Image, format: str) -> bytes:
    """The bytes of a JPEG (quality 95) or PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}))
    return buffer.getvalue()


def check_row(row: Row, det_classes: int, seg_classes: int) -> tuple[Row, int, int]:
    """A row that keeps the data contract; beside it the number of boxes clipped, and of boxes dropped.

    Args:
        row: as read.
        det_classes: number of object classes.
        seg_classes: number of pixel classes, with background.

    Raises:
        Reject: the row breaks the contract in a way that cannot be mended.
    """
    image, height, width = as_rgb(row.image)
    if (height, width) != (row.height, row.width):
        raise Reject("annotation of another size", f"{row.width}x{row.height}, the image has {width}x{height}")
    if row.has_seg != (row.mask is not None) or (len(row.boxes) and not row.has_det):
        raise ValueError(f"{row.image_id}: annotation and task mask contradict each other")
    if row.mask is not None:
        _check_mask(row.mask, height, width, seg_classes)
    if ((row.labels < 0) | (row.labels >= det_classes)).any():
        raise Reject("unknown class", f"labels {sorted(set(row.labels.tolist()))} of {det_classes} classes")

    boxes = row.boxes.astype(np.float32).reshape(-1, 4)
    x1, y1, x2, y2 = boxes.T
    outside = np.stack([-x1, -y1, x2 - width, y2 - height, -x2, -y2, x1 - width, y1 - height], axis=1)
    # "not <=" also catches NaN.
    if not (outside <= SLACK).all():
        worst = int(np.argmax(np.nan_to_num(outside, nan=np.inf).max(axis=1)))
        raise Reject("box outside its image", f"{boxes[worst].tolist()} in {width}x{height}")
    if (x2 < x1).any() or (y2 < y1).any():
        raise Reject("inverted box", str(boxes[(x2 < x1) | (y2 < y1)][0].tolist()))
    clipped = boxes.clip(0, np.array([width, height, width, height], np.float32))
    keep = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    checked = replace(row, image=image, boxes=clipped[keep], labels=row.labels[keep], difficult=row.difficult[keep])
    return checked, int((clipped != boxes).any(axis=1)[keep].sum()), int((~keep).sum())


def _check_mask(mask: np.ndarray, height: int, width: int, classes: int) -> None:
    if mask.shape != (height, width):
        raise Reject("mask of another size", f"{mask.shape[1]}x{mask.shape[0]}, the image has {width}x{height}")
    ids = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unknown = [int(i) for i in ids if i >= classes and i != IGNORE]
    if unknown:
        raise Reject("unknown class", f"mask holds {unknown}, there are {classes} classes")
