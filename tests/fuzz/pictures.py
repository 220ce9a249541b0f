"""Encoded images and masks, and Pillow's own."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from multas_ray.data.image import decode_rgb, to_stored
from multas_ray.data.pillow import decode_labels, encode, upright_rgb, upright_size
from multas_ray.formats.class_maps import MaskClasses, read_mask, voc_colours
from multas_ray.formats.voc_classes import CLASSES
from tests.fuzz.harness import Case
from tests.fuzz.mutate import mutated_bytes

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8).repeat(5, 0).repeat(5, 1)
"""Of an image of 40 x 60 pixels."""
VALUES = np.zeros((40, 60), np.uint8)
VALUES[5:20, 10:30], VALUES[30:, 50:] = 8, 255
"""Of a mask in VOC's values."""


def image(folder: Path) -> Callable[[Random], Case]:
    """An encoded image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    bases = []
    for format, options in [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"exif": exif}), ("PNG", {}), ("PNG", {"exif": exif}),
        ("WEBP", {}), ("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}),
        ("JPEG2000", {}), ("AVIF", {}),
    ]:  # fmt: skip
        stream = io.BytesIO()
        Image.fromarray(PIXELS).save(stream, format, **options)
        bases.append(stream.getvalue())

    def make(rng: Random) -> Case:
        data = mutated_bytes(rng, rng.choice(bases))

        def run() -> None:
            height, width, _ = upright_size(data)
            stored = to_stored(data)
            assert (stored.height, stored.width) == (height, width)
            # What is stored, training can decode.
            assert decode_rgb(stored.data, upright=False).shape == (3, height, width)

        return data, run

    return make


def mask(folder: Path) -> Callable[[Random], Case]:
    """An encoded mask."""
    palette = Image.fromarray(VALUES)
    palette.putpalette(bytes(np.random.default_rng(0).integers(0, 256, 768, np.uint8)))
    bases = [encode(each, "PNG") for each in (Image.fromarray(VALUES), palette, Image.fromarray(PIXELS))]
    classes = MaskClasses(list(CLASSES), ["cat", "dog"], voc_colours(20))

    def make(rng: Random) -> Case:
        data = mutated_bytes(rng, rng.choice(bases))

        def run() -> None:
            found = read_mask(data, classes, Counter())
            assert set(np.unique(found)) <= {0, 1, 2, 255}
            decode_labels(data)

        return data, run

    return make


def pillow(folder: Path) -> Callable[[Random], Case]:
    """Images of Pillow's, of every mode."""
    modes = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F",
             "I;16", "I;16B"]  # fmt: skip

    def make(rng: Random) -> Case:
        mode, size = rng.choice(modes), (rng.choice((1, 3, 200)), rng.choice((1, 7)))
        picture = Image.new(mode, size)
        return f"{mode} {size}".encode(), lambda: upright_rgb(picture).load()

    return make
