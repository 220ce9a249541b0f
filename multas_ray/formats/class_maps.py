"""Masks of class ids or of colours, as VOC and the tools that write its layout have them."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from multas_ray.data.pillow import opened
from multas_ray.data.reject import Reject
from multas_ray.data.schema import IGNORE

Colour = tuple[int, int, int]
SHOWN = 5
"""Largest number of values or colours that a message lists."""


def voc_palette() -> np.ndarray:
    """(256, 3) uint8: RGB of VOC's label images. The bits of an index, from the lowest, go to red, green and blue by
    turns, and in each from the highest bit down."""
    index = np.arange(256)[:, None]
    bits = (index >> np.arange(24)) & 1
    weights = 1 << (7 - np.arange(8))
    return (bits.reshape(256, 8, 3) * weights[:, None]).sum(axis=1).astype(np.uint8)


def voc_colours(classes: int) -> dict[Colour, int]:
    """The values of the colours that VOC's palette gives to background, so many classes, and pixels to ignore."""
    palette = voc_palette().tolist()
    return {
        (red, green, blue): value for value in (*range(classes + 1), IGNORE) for red, green, blue in [palette[value]]
    }


@dataclass(frozen=True)
class ClassMap:
    """The meaning of the values and colours of masks."""

    mask_classes: list[str]
    """Classes in the order of their values, from 1; 0 is background."""
    classes: list[str]
    """Classes of the data set, in its order; the pixels of others become 255."""
    colours: dict[Colour, int]
    """The value that each colour means, in masks of colours."""

    def table(self) -> dict[int, int]:
        """Packed colour -> value."""
        return {red << 16 | green << 8 | blue: value for (red, green, blue), value in self.colours.items()}

    def target(self) -> np.ndarray:
        """(256,) uint8: the value in the data set of each value in a mask."""
        target = np.full(256, IGNORE, np.uint8)
        target[0] = 0
        for value, name in enumerate(self.mask_classes, start=1):
            if name in self.classes:
                target[value] = self.classes.index(name) + 1
        return target


def read_mask(data: bytes, classes: ClassMap, notes: Counter[str]) -> np.ndarray:
    """The pixels of an encoded mask, (H, W) uint8: 0 background, 1.. the data set's classes, 255 for others and where
    it says nothing.

    Args:
        notes: counts of how masks were read, added to.

    Raises:
        Reject: it cannot be decoded, or it holds a value or colour that means nothing.
    """
    with opened(data, "broken mask") as image:
        if image.mode in ("RGB", "RGBA"):
            values = _by_colour(np.asarray(image.convert("RGB")), classes)
            notes["masks read by their colours"] += 1
        elif image.mode in ("P", "L", "1") or image.mode.startswith("I;16"):
            values = np.asarray(image)
            if image.mode == "P":
                palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
                values = _by_palette(values, palette, classes, notes)
        else:
            raise Reject("broken mask", f"class ids or colours are needed, found mode {image.mode}")
    present = np.flatnonzero(np.bincount(values.ravel().astype(np.int64)))
    unknown = [int(value) for value in present if value > len(classes.mask_classes) and value != IGNORE]
    if unknown:
        raise Reject(
            "unknown class",
            f"mask values {_some(unknown)}, and {len(classes.mask_classes)} classes are known: name yours with "
            "--classes, in the order of their values from 1 on",
        )
    return classes.target()[values.astype(np.uint8)]


def _by_colour(pixels: np.ndarray, classes: ClassMap) -> np.ndarray:
    """(H, W) uint8 values of an RGB mask."""
    table = classes.table()
    colours, places = np.unique(_packed(pixels), return_inverse=True)
    unknown = [colour for colour in colours.tolist() if colour not in table]
    if unknown:
        raise Reject(
            "unknown colour",
            f"{_some([f'#{colour:06x}' for colour in unknown])} in a mask of colours are no class's: a labelmap.txt "
            "beside JPEGImages says whose a colour is (name:red,green,blue::), else VOC's are taken",
        )
    return np.array([table[colour] for colour in colours.tolist()], np.uint8)[places].reshape(pixels.shape[:2])


def _by_palette(values: np.ndarray, palette: np.ndarray, classes: ClassMap, notes: Counter[str]) -> np.ndarray:
    """Values by the colours of their palette where these are the classes', as paint programs sort palettes anew, else
    as they are."""
    table = classes.table()
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    means = {int(v): table.get(int(_packed(palette[v]))) if v < len(palette) else None for v in present}
    if all(meaning == value for value, meaning in means.items() if meaning is not None):
        return values
    strange = [value for value, meaning in means.items() if meaning is None]
    if strange:
        raise Reject(
            "unknown palette",
            f"the palette has colours of classes at other places than these, and none at {_some(strange)}",
        )
    notes["masks read by their colours: their palette is in another order"] += 1
    return np.array([means.get(value) or 0 for value in range(256)], np.uint8)[values]


def _packed(colours: np.ndarray) -> np.ndarray:
    """Colours (..., 3) as one number each."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue


def _some(values: list) -> str:
    return ", ".join(map(str, values[:SHOWN])) + (", …" if len(values) > SHOWN else "")
