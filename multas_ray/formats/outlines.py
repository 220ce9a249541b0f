"""Outlines of COCO, polygons and run lengths, as regions of pixels: checked before any C code reads them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from multas_ray.data.reject import Reject
from multas_ray.errors import quoted

MAX_POINTS = 20_000_000
"""Largest number of points that pycocotools may make of a polygon, five for each pixel of its length: 8 bytes each."""


@dataclass(frozen=True)
class Region:
    """Pixels of an image."""

    runs: np.ndarray
    """(n,) int64: lengths of runs down the columns, alternately outside and inside; their sum is the image's pixels."""

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.runs[1::2].sum())

    def paint(self, columns: np.ndarray, value: int) -> None:
        """Give the region's pixels a value.

        Args:
            columns: (H * W,) pixels of an image, column after column.
            value: value to write.
        """
        first, inner = int(self.runs[0]), self.runs[1:]
        inside = np.repeat(np.arange(len(inner)) % 2 == 0, inner)
        columns[first : first + len(inside)][inside] = value

    def box(self, height: int) -> list[float]:
        """Return x1 y1 x2 y2 around the region's pixels in an image of this height; the region must not be empty."""
        ends = np.cumsum(self.runs)
        lengths = self.runs[1::2]
        starts, lasts = ends[:-1:2][: len(lengths)][lengths > 0], ends[1::2][lengths > 0] - 1
        x1, x2 = int(starts[0] // height), int(lasts[-1] // height) + 1
        # A run that continues in the next column touches the image's lower and upper edge.
        wraps = (starts // height != lasts // height).any()
        y1, y2 = (0, height) if wraps else (int((starts % height).min()), int((lasts % height).max()) + 1)
        return [x1, y1, x2, y2]


def paint_all(regions: Iterable[tuple[Region, int]], columns: np.ndarray) -> None:
    """Give the pixels of regions their values, those of smaller regions over those of larger ones.

    Args:
        regions: each with its value.
        columns: (H * W,) pixels of an image, column after column.
    """
    for region, value in sorted(regions, key=lambda part: -part[0].area):
        region.paint(columns, value)


def has_outline(segmentation: Any) -> bool:
    """Return whether an annotation's `segmentation` holds an outline, valid or broken."""
    if isinstance(segmentation, dict):
        return True
    if not isinstance(segmentation, list):
        return bool(segmentation)
    return any(
        not isinstance(p, list) or len(p) >= 6 for p in ([segmentation] if _is_flat(segmentation) else segmentation)
    )


def _is_flat(polygons: list[Any]) -> bool:
    """Return whether the numbers of one polygon lie in no list of polygons."""
    return bool(polygons) and not any(isinstance(part, list) for part in polygons)


def read_region(segmentation: Any, height: int, width: int, notes: Counter[str]) -> Region | None:
    """Read the region of an annotation's `segmentation`.

    Args:
        segmentation: polygons (also one that lies in no list of polygons), run lengths, or compressed run lengths.
        height: height of the image in pixels.
        width: width of the image in pixels.
        notes: counts of omissions, updated.

    Returns:
        The region; None without an outline, or without a pixel in the image.

    Raises:
        Reject: the outline is malformed, or for another size of the image.
    """
    region = _region(segmentation, height, width, notes)
    if region is not None and not region.area:
        notes["outlines dropped: without a pixel"] += 1
        return None
    return region


def _region(segmentation: Any, height: int, width: int, notes: Counter[str]) -> Region | None:
    """Read a region, which may be empty."""
    if isinstance(segmentation, dict):
        return Region(_run_lengths(segmentation, height, width))
    if not isinstance(segmentation, list | None) and segmentation:
        raise Reject("broken annotation", f"segmentation {quoted(segmentation)} is neither polygons nor run lengths")
    polygons = [segmentation] if segmentation and _is_flat(segmentation) else segmentation or []
    if not all(isinstance(polygon, list) for polygon in polygons):
        raise Reject("broken annotation", "segmentation is a list of polygons, and here of other things too")
    whole = [polygon for polygon in polygons if len(polygon) >= 6]
    if stray := sum(0 < len(polygon) < 6 for polygon in polygons):
        notes["polygons dropped: fewer than three points"] += stray
    if not whole:
        return None
    inside = [points for points in (_polygon(polygon, height, width) for polygon in whole) if points]
    if not inside:
        return Region(np.array([height * width]))
    return Region(_decompressed(coco_mask.merge(coco_mask.frPyObjects(inside, height, width))["counts"]))


def number(value: Any, what: str) -> float:
    """Convert a finite number, also one that is written as a string.

    Args:
        value: the number.
        what: its name in the message.

    Raises:
        Reject: the value is no finite number.
    """
    try:
        if not isinstance(value, bool) and math.isfinite(finite := float(value)):
            return finite
    except (TypeError, ValueError, OverflowError):
        pass
    raise Reject("broken annotation", f"{what} {quoted(value)} is no number")


def _polygon(polygon: Sequence[Any], height: int, width: int) -> list[float]:
    """Check a polygon for pycocotools, clipped near the image: x y x y …; empty if no part is in the image."""
    if len(polygon) % 2:
        raise Reject("broken annotation", f"a polygon of {len(polygon)} numbers: x and y of each point are needed")
    points = np.array([number(value, "a polygon's coordinate") for value in polygon]).reshape(-1, 2)
    edge = 4.0 * max(height, width)
    if (np.abs(points) > edge).any():
        points = _within(points, -1.0, width + 1.0, -1.0, height + 1.0)
    length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() if len(points) else 0
    if 5 * length > min(MAX_POINTS, 10 * height * width + 100_000):
        raise Reject("broken annotation", f"a polygon whose sides are {length:.0f} pixels long in {width}x{height}")
    return points.ravel().tolist() if len(points) >= 3 else []


def _within(points: np.ndarray, x1: float, x2: float, y1: float, y2: float) -> np.ndarray:
    """Clip a polygon (N, 2) to a box, one side after another (Sutherland and Hodgman 1974): (M, 2)."""
    for axis, sign, limit in ((0, 1, x1), (0, -1, -x2), (1, 1, y1), (1, -1, -y2)):
        if not len(points):
            break
        beyond = sign * points[:, axis] - limit  # >= 0: inside
        before, previous = np.roll(beyond, 1), np.roll(points, 1, axis=0)
        crosses = (beyond >= 0) != (before >= 0)
        share = np.where(crosses, before / np.where(crosses, before - beyond, 1), 0)[:, None]
        crossing = previous + share * (points - previous)
        parts = [
            part
            for cross, inside, at, point in zip(crosses, beyond >= 0, crossing, points, strict=True)
            for part in ([at] if cross else []) + ([point] if inside else [])
        ]
        points = np.array(parts).reshape(-1, 2)
    return points


def _run_lengths(rle: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Read COCO's run lengths, plain or compressed: (n,) int64."""
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise Reject("mask of another size", f"{quoted(size)}, the image has {[height, width]} (height, width)")
    if isinstance(counts, str):
        text = counts.removeprefix("b'").removesuffix("'") if counts.startswith("b'") else counts
        runs = _decompressed(text.encode("ascii", "replace"))
    elif isinstance(counts, list) and all(type(run) is int and 0 <= run <= height * width for run in counts):
        runs = np.array(counts or [0], np.int64)
    else:
        raise Reject(
            "broken annotation", "run lengths are neither a string nor whole numbers from 0 to the image's size"
        )
    if (runs < 0).any() or runs.sum() != height * width:
        raise Reject("broken annotation", f"run lengths add up to {runs.sum()}, the image has {height * width} pixels")
    return runs


def _decompressed(text: bytes) -> np.ndarray:
    """Decompress COCO's string of run lengths: (n,) int64.

    Numbers are written in digits of five bits, the lowest first, each a character from '0' on whose sixth bit is set if
    more digits follow; from the fourth number on, they are differences to the last but one.
    """
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(ends) or ((digits < 0) | (digits > 63)).any() or ends[-1] != len(digits) - 1:
        raise Reject("broken annotation", "compressed run lengths are cut short, or hold characters that none has")
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise Reject("broken annotation", "compressed run lengths of more than 35 bits")
    values = np.add.reduceat((digits & 31) << (5 * place), starts)
    # The highest bit of a number's last digit is its sign.
    values -= np.where(digits[ends] & 16, np.int64(1) << (5 * (place[ends] + 1)), 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values
