"""Pictures whose pixels are numbers: of segments, or of categories."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from multas_ray.data.pillow import opened
from multas_ray.data.reject import Reject

SHOWN = 5
"""Largest number of values that a message lists."""


def read_numbers(data: bytes, height: int, width: int) -> np.ndarray:
    """Decode a picture of numbers: grey levels, or indices of a palette.

    Args:
        data: bytes of the file.
        height: of its image in pixels.
        width: of its image in pixels.

    Returns:
        (H, W) uint8 or uint16.

    Raises:
        Reject: the picture is broken, of colours, or of another size.
    """
    with opened(data, "broken mask") as picture:
        _check_size(picture, height, width)
        if picture.mode not in ("L", "P") and not picture.mode.startswith("I;16"):
            raise Reject("broken mask", f"category ids are needed (a grey or palette PNG), found mode {picture.mode}")
        return np.array(picture)


def read_segment_ids(data: bytes, height: int, width: int) -> np.ndarray:
    """Decode a picture whose colours are numbers, red + 256 green + 65536 blue.

    Args:
        data: bytes of the file.
        height: of its image in pixels.
        width: of its image in pixels.

    Returns:
        (H, W) int32.

    Raises:
        Reject: the picture is broken, not of colours, or of another size.
    """
    with opened(data, "broken mask") as picture:
        _check_size(picture, height, width)
        if picture.mode not in ("RGB", "RGBA"):
            raise Reject("broken mask", f"segment ids are colours of an RGB PNG, found mode {picture.mode}")
        red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0).astype(np.int32)
        ids: np.ndarray = red + (green << 8) + (blue << 16)
        return ids


def translated(numbers: np.ndarray, meanings: Mapping[int, int]) -> tuple[np.ndarray, list[int]]:
    """Translate the numbers of a picture.

    Args:
        numbers: (H, W) integers.
        meanings: number -> mask value, 0..255.

    Returns:
        (H, W) uint8 mask values, and the numbers that have no meaning, ascending: the values of their pixels are 0.
    """
    present, places = np.unique(numbers, return_inverse=True)
    values = np.array([meanings.get(number, 0) for number in present.tolist()], np.uint8)
    unknown = [number for number in present.tolist() if number not in meanings]
    return values[places].reshape(numbers.shape), unknown


def some(values: list[Any]) -> str:
    """List values in a message, the first SHOWN of them."""
    return ", ".join(map(str, values[:SHOWN])) + (", …" if len(values) > SHOWN else "")


def _check_size(picture: Image.Image, height: int, width: int) -> None:
    """Refuse a picture that is of another size both upright and turned, before memory is taken for its pixels."""
    if sorted(picture.size) != sorted((height, width)):
        raise Reject("mask of another size", f"{picture.width}x{picture.height}, the image has {width}x{height}")
