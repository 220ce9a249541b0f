"""A split in two, to choose settings on its smaller part.

The part is drawn at random and becomes the split `val`: settings are chosen on it, so that the rows that are reported
stay unseen.
"""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from multas_ray.data.reject import Reject
from multas_ray.formats.flags import Fraction
from multas_ray.formats.source import Options as BaseOptions
from multas_ray.formats.source import Source, Split

if TYPE_CHECKING:
    from multas_ray.data.index import Index
    from multas_ray.data.row import Row


class Options(BaseOptions):
    """A split of a data set, and how much of it is held out."""

    data: str
    """data set folder"""
    split: str = "train"
    """the split to divide"""
    fraction: Fraction = 0.2
    """of its rows that become val"""
    seed: int = Field(0, ge=0)


def read(options: Options) -> Source:
    """List a split in two: `val` with the fraction of the rows of each task mask, `train` with the others.

    Both are in storage order.

    Raises:
        UserError: there is no such data set or split.
    """
    from multas_ray.config import TASK_MASKS
    from multas_ray.data.index import read_index
    from multas_ray.data.schema import read_info

    info, index = read_info(options.data), read_index(options.data, options.split)
    random = np.random.default_rng(options.seed)
    aside = np.zeros(len(index), bool)
    for mask in TASK_MASKS:
        rows = index.rows([mask])
        aside[rows.at(random.permutation(len(rows))[: round(options.fraction * len(rows))])] = True
    parts = {"train": np.flatnonzero(~aside).tolist(), "val": np.flatnonzero(aside).tolist()}
    return Source(
        name=info.name,
        classes={"det": info.det_classes, "seg": info.seg_classes},
        splits={name: Split(rows, partial(_read_row, index)) for name, rows in parts.items()},
        about=f"{options.split} of {options.data}",
    )


def _read_row(index: "Index", number: int) -> "Row | Reject":
    """A row as it is stored; of one that breaks the data contract, why."""
    from multas_ray.config import TASKS
    from multas_ray.data.read import read_row
    from multas_ray.data.row import Row
    from multas_ray.tasks.segmentation.rows import decode_mask

    try:
        stored = read_row(index, number)
        mask = decode_mask(stored, len(index.seg_classes)) if stored["has_seg"] else None
    except Reject as reject:
        return reject
    values = {name: stored[name] for name in ("image_id", "image", "height", "width", "has_det", "has_seg")}
    lists = {name: stored[name] for name in ("boxes", "labels", "difficult")}
    # Images of a data set are upright, whatever their EXIF says.
    unlabelled = {task: tuple(stored[f"{task}_unlabelled"].tolist()) for task in TASKS}
    return Row(**values, **lists, mask=mask, unlabelled=unlabelled, exif=False)
