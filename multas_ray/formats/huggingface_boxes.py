"""Boxes that are written in another way than they are read: told by those of the first rows."""

import numpy as np

from multas_ray.errors import UserError
from multas_ray.formats.huggingface_rows import RowReader

SAMPLE = 50
"""Number of rows that are looked at."""
SLACK = 2.0
"""Pixels that boxes may go beyond their images and still be believed."""
DOUBTFUL = 0.2
"""Largest share of boxes that may be wrong by themselves: annotators draw beyond images."""


def check_boxes(reader: RowReader) -> None:
    """Refuse boxes that are certain to be read wrong; clipped, they would be boxes that nobody drew.

    They are where all fit their images in the other way, and many do not as they are read, or where all are fractions
    of their images.

    Raises:
        UserError: says in which way they are written.
    """
    sample = list(reader.first_objects(SAMPLE)) if reader.det else []
    if not sample:
        return
    boxes = np.concatenate([objects.boxes for objects, _ in sample])
    sizes = np.concatenate([np.tile([size[1], size[0]], (len(objects.boxes), 1)) for objects, size in sample])
    where = f"{reader.folder.root}: of the first {len(boxes)} boxes"
    if ((boxes >= 0) & (boxes <= 1)).all():
        raise UserError(f"{where} all are fractions of 0 to 1: pixels are needed")
    read_wrong = ~_fit(boxes, sizes, corners=reader.boxes == "xyxy")
    other = {"xywh": "xyxy", "xyxy": "xywh"}[reader.boxes]
    if read_wrong.mean() > DOUBTFUL and _fit(boxes, sizes, corners=other == "xyxy").all():
        raise UserError(
            f"{where} {read_wrong.sum()} do not fit their images as {reader.boxes}, and all do as {other}: --boxes "
            f"{other} reads them so"
        )


def _fit(boxes: np.ndarray, sizes: np.ndarray, *, corners: bool) -> np.ndarray:
    """Whether boxes (N, 4) have an area and lie in images of these widths and heights (N, 2): (N,) bool."""
    ends = boxes[:, 2:] if corners else boxes[:, :2] + boxes[:, 2:]
    inside = (ends > boxes[:, :2]) & (ends <= sizes + SLACK) & (boxes[:, :2] >= -SLACK)
    return np.asarray(inside.all(axis=1))
