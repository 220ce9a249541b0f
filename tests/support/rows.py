"""Rows to write, and sources that hold them."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import ExifTags, Image

from multas_ray.data.pillow import encode
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.formats.source import Source, Split

DET, SEG = ["cat", "dog"], ["background", "cat", "dog"]
HEIGHT, WIDTH = 20, 30


def source_of(
    splits: Mapping[str, Sequence[Row | Reject] | Split],
    det: Sequence[str] = DET,
    seg: Sequence[str] = SEG,
    about: str = "",
) -> Source:
    """A source of rows that are made already, or of splits."""
    made = {name: rows if isinstance(rows, Split) else Split(rows, _as_it_is) for name, rows in splits.items()}
    return Source("toy", {"det": det, "seg": seg}, made, about)


def _as_it_is(row: Row | Reject) -> Row | Reject:
    return row


def make_row(image_id: str = "a", boxes: list[list[float]] | None = None) -> Row:
    """A row of 20 x 30 pixels with both tasks."""
    array = np.array([[1, 2, 10, 12]] if boxes is None else boxes, np.float32).reshape(-1, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:12, 1:10] = 2
    mask[0, 0] = 255
    return Row(
        image_id,
        encode(Image.fromarray(pixels), "JPEG"),
        HEIGHT,
        WIDTH,
        True,
        True,
        array,
        np.ones(len(array), np.int32),
        np.zeros(len(array), bool),
        mask,
    )


def with_exif(data: bytes, orientation: int) -> bytes:
    """An image as a phone stores it that was held another way: encoded anew, with EXIF's orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(buffer, image.format, exif=exif)
    return buffer.getvalue()
