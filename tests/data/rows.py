"""Rows to write."""

import io

import numpy as np
from PIL import ExifTags, Image

from multas_ray.data.image import encode
from multas_ray.data.row import Row

DET, SEG = ["cat", "dog"], ["background", "cat", "dog"]
HEIGHT, WIDTH = 20, 30


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
