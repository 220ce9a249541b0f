"""Masks of class ids or of colours, as in VOC and in the output of tools that write its layout."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multas_ray.data.pillow import opened
from multas_ray.data.reject import Reject
from multas_ray.formats.pixel_maps import some
from multas_ray.tasks.segmentation.rows import IGNORE, VOID_PIXELS

Colour = tuple[int, int, int]
"""Red, green and blue, 0..255."""
LABEL_MAP_HELP = "a labelmap.txt beside JPEGImages says whose a colour is (name:red,green,blue::), else VOC's are taken"
STRIP = 2**20
"""Number of pixels whose colours are looked up at a time."""


def voc_palette() -> np.ndarray:
    """Return the palette of VOC's label images, (256, 3) uint8 RGB.

    The bits of an index, from the lowest, go to red, green and blue by turns, and in each from the highest bit down.
    """
    index = np.arange(256)[:, None]
    bits = (index >> np.arange(24)) & 1
    weights = 1 << (7 - np.arange(8))
    colours: np.ndarray = (bits.reshape(256, 8, 3) * weights[:, None]).sum(axis=1).astype(np.uint8)
    return colours


def voc_colours(classes: int) -> dict[Colour, int]:
    """Map the colours that VOC's palette gives to background, `classes` classes and ignored pixels to mask values."""
    palette = voc_palette().tolist()
    return {
        (red, green, blue): value for value in (*range(classes + 1), IGNORE) for red, green, blue in [palette[value]]
    }


@dataclass(frozen=True)
class MaskClasses:
    """Meaning of the values and colours of masks."""

    mask_classes: list[str]
    """Classes in the order of their values, from 1; 0 is background."""
    classes: list[str]
    """Classes of the data set, in its order; the pixels of others become 255."""
    colours: dict[Colour, int]
    """Value of each colour in masks of colours."""

    def table(self) -> dict[int, int]:
        """Map packed colours to values."""
        return {red << 16 | green << 8 | blue: value for (red, green, blue), value in self.colours.items()}

    def target(self) -> np.ndarray:
        """Return the data set's value (256,) uint8 for each value in a mask."""
        target = np.full(256, IGNORE, np.uint8)
        target[0] = 0
        # As boxes do, whose classes are found in upper and lower case alike.
        places = {name.casefold(): place for place, name in enumerate(self.classes, start=1)}
        for value, name in enumerate(self.mask_classes, start=1):
            target[value] = places.get(name.casefold(), IGNORE)
        return target


def read_mask(data: bytes, classes: MaskClasses, notes: Counter[str]) -> np.ndarray:
    """Decode a mask of class ids or of colours.

    Args:
        data: bytes of the mask's file.
        classes: meaning of the mask's values and colours.
        notes: counts of how masks were read, updated.

    Returns:
        (H, W) uint8: 0 for background, 1.. for the data set's classes, 255 for other classes and ignored pixels.

    Raises:
        Reject: the mask cannot be decoded, or holds an unknown value or colour.
    """
    with opened(data, "broken mask") as image:
        if image.mode in ("RGB", "RGBA"):
            values = values_of_colours(np.asarray(image.convert("RGB")), classes.table(), LABEL_MAP_HELP)
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
            f"mask values {some(unknown)}, and {len(classes.mask_classes)} classes are known: name yours with "
            "--classes, in the order of their values from 1 on",
        )
    values = values.astype(np.uint8)
    notes[VOID_PIXELS] += int((values == IGNORE).sum())
    mask: np.ndarray = classes.target()[values]
    return mask


def values_of_colours(pixels: np.ndarray, table: Mapping[int, int], known: str) -> np.ndarray:
    """Convert a mask of colours to values.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        table: value, 0..255, of each colour, packed as 0xRRGGBB.
        known: sentence for people on what says whose a colour is.

    Returns:
        (H, W) uint8.

    Raises:
        Reject: a colour is not in the table.
    """
    # -1 is no colour: it keeps the arrays from being empty.
    colours, meanings = map(np.array, zip(*sorted({-1: 0, **table}.items()), strict=True))
    values = np.empty(pixels.shape[:2], np.uint8)
    # In strips: packed colours and their places take sixteen times the memory of values.
    rows = max(1, STRIP // max(1, pixels.shape[1]))
    for top in range(0, len(pixels), rows):
        packed = _packed(pixels[top : top + rows])
        places = np.searchsorted(colours, packed).clip(max=len(colours) - 1)
        unknown = np.unique(packed[colours[places] != packed]).tolist()
        if unknown:
            raise Reject(
                "unknown colour",
                f"{some([f'#{colour:06x}' for colour in unknown])} in a mask of colours are no class's: {known}",
            )
        values[top : top + rows] = meanings[places]
    return values


def _by_palette(values: np.ndarray, palette: np.ndarray, classes: MaskClasses, notes: Counter[str]) -> np.ndarray:
    """Convert palette indices (H, W) to the values of their colours, if the palette's colours are those of the classes.

    Paint programs reorder palettes. Indices of a palette of other colours are returned unchanged.
    """
    table = classes.table()
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    means = {int(v): table.get(int(_packed(palette[v]))) if v < len(palette) else None for v in present}
    if all(meaning == value for value, meaning in means.items() if meaning is not None):
        return values
    strange = [value for value, meaning in means.items() if meaning is None]
    if strange:
        raise Reject(
            "unknown palette",
            f"the palette has colours of classes at other places than these, and none at {some(strange)}",
        )
    notes["masks read by their colours: their palette is in another order"] += 1
    meanings = np.array([means.get(value) or 0 for value in range(256)], np.uint8)
    translated: np.ndarray = meanings[values]
    return translated


def _packed(colours: np.ndarray) -> np.ndarray:
    """Pack colours (..., 3) into one int64 each."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    packed: np.ndarray = red << 16 | green << 8 | blue
    return packed
