"""Smaller images: one with a long side is encoded anew, and its annotation scaled along."""

from collections import Counter
from dataclasses import replace

import numpy as np
from PIL import Image

from multas_ray.data.pillow import as_rgb, encode, opened
from multas_ray.data.row import Row

QUALITY = 90
"""Quality of the JPEGs."""


def shrink(row: Row, max_side: int) -> Row:
    """Shrink the image of a row so that its longer side has `max_side` pixels, and scale its boxes and mask along.

    A row with a smaller image is returned as it is. JPEG stays JPEG, and PNG stays PNG. A pixel of the mask is the
    nearest one of the former mask; boxes are exact. A box that is too thin to have an area in float32 is dropped.

    Args:
        row: row that keeps the data contract, see `check_row`.
        max_side: pixels, from 1 on.
    """
    assert row.height
    assert row.width
    longest = max(row.height, row.width)
    if longest <= max_side:
        return row
    height, width = (max(1, round(side * max_side / longest)) for side in (row.height, row.width))
    with opened(row.image) as image:
        smaller = as_rgb(image).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
        data = encode(smaller, image.format or "PNG", QUALITY)
    sides = np.array([width, height] * 2, np.float64)
    boxes = row.boxes.astype(np.float64) * (sides / ([row.width, row.height] * 2))
    boxes = boxes.clip(0, sides).astype(np.float32)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    notes = Counter({"images shrunk (--max-side)": 1, "boxes dropped: without area": int((~kept).sum())})
    return replace(
        row,
        image=data,
        height=height,
        width=width,
        boxes=boxes[kept],
        labels=row.labels[kept],
        difficult=row.difficult[kept],
        mask=None if row.mask is None else _nearest(row.mask, height, width),
        notes=row.notes + notes,
    )


def _nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
