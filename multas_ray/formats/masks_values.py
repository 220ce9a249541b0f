"""Masks of which any value, or any colour, may be any class, or ignored; there need be no background."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from multas_ray.data.pillow import opened
from multas_ray.data.reject import Reject
from multas_ray.formats.class_maps import Colour, values_of_colours
from multas_ray.formats.pixel_maps import some
from multas_ray.tasks.segmentation.rows import IGNORE

DEPTH_OF_PNG = 24
"""Place of the byte of a PNG file that says how many bits a channel has: Pillow reads 16 of RGB as 8 without a word."""


@dataclass(frozen=True)
class MaskClasses:
    """The classes of masks, and what the masks' values or colours mean."""

    names: Sequence[str]
    """Classes of the data set: the index is the value in its masks."""
    values: Mapping[int, int]
    """Index in `names`, or 255 for ignored, of each value in masks of ids, 0..255; empty for masks of colours."""
    colours: Mapping[Colour, int]
    """The same of each colour in masks of colours; empty for masks of ids."""
    source: str
    """What says so, in messages."""

    def only(self, names: Sequence[str]) -> "MaskClasses":
        """Return the classes with these names alone, in this order; pixels of the others are ignored."""
        target = {self.names.index(name): value for value, name in enumerate(names)}
        values = {raw: target.get(value, IGNORE) for raw, value in self.values.items()}
        colours = {colour: target.get(value, IGNORE) for colour, value in self.colours.items()}
        return replace(self, names=names, values=values, colours=colours)

    def from_one(self) -> "MaskClasses":
        """Return the classes for masks in which each value is one more, and 0 is ignored."""
        values = {raw + 1: value for raw, value in self.values.items() if raw + 1 < IGNORE}
        return replace(self, values={0: IGNORE, **values})


def read_values(data: bytes, classes: MaskClasses, notes: Counter[str]) -> np.ndarray:
    """Decode a mask of ids or of colours.

    Args:
        data: bytes of the mask's file. Of ids: grey, with a palette (whose indices count), of one bit, or RGB whose
            channels are equal. Of colours: any 8-bit image, whose transparency is left out.
        classes: meaning of its values or colours; 255 is ignored where no class has it.
        notes: counts of how masks were read, updated.

    Returns:
        (H, W) uint8: index in `classes.names`, or 255 for ignored.

    Raises:
        Reject: the mask cannot be decoded, has 16 bits a channel, or a value or colour that means nothing.
    """
    with opened(data, "broken mask") as image:
        if image.mode.startswith("I") or (image.format == "PNG" and data[DEPTH_OF_PNG] == 16):
            raise Reject("broken mask", "16 bits or more a pixel, as masks of single objects have; 8 hold 255 classes")
        if image.mode == "F":
            raise Reject("broken mask", "class ids or colours are needed, found mode F")
        if classes.colours:
            table = {red << 16 | green << 8 | blue: value for (red, green, blue), value in classes.colours.items()}
            return values_of_colours(np.asarray(image.convert("RGB")), table, f"{classes.source} has no such colour")
        ids = _ids(image, classes, notes)
    target, known = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
    for raw, value in {IGNORE: IGNORE, **classes.values}.items():
        target[raw], known[raw] = value, True
    if not (usual := known[ids]).all():
        raise Reject("unknown class", f"mask values {some(np.unique(ids[~usual]).tolist())}: {classes.source} has none")
    values: np.ndarray = target[ids]
    return values


def _ids(image: Image.Image, classes: MaskClasses, notes: Counter[str]) -> np.ndarray:
    """The values (H, W) uint8 of a mask of ids."""
    if image.mode in ("P", "L", "1"):
        return np.asarray(image).astype(np.uint8)
    pixels = np.asarray(image.convert("RGB"))
    if (pixels != pixels[..., :1]).any():
        raise Reject(
            "broken mask",
            f"a mask of colours (mode {image.mode}), and {classes.source} says what ids mean, not colours",
        )
    notes["masks of ids stored as RGB: one channel taken"] += 1
    return np.ascontiguousarray(pixels[..., 0])
