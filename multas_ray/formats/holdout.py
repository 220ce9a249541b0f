"""Part of a split set aside: settings are chosen on it, so that the rows that are reported stay unseen."""

from collections.abc import Iterator

import numpy as np

from multas_ray.data.index import Index, read_index
from multas_ray.data.read import read_row
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.data.schema import TASK_MASKS
from multas_ray.tasks.segmentation.rows import decode_mask


def carve(path: str, split: str, fraction: float, seed: int) -> dict[str, tuple[int, Iterator[Row | Reject]]]:
    """A split in two: `val` with this fraction of the rows of each task mask, drawn at random, `train` with the others.

    Returns:
        Name -> number of rows, and the rows, both in storage order; of one that breaks the data contract, why.

    Raises:
        UserError: there is no such data set or split.
    """
    index = read_index(path, split)
    random = np.random.default_rng(seed)
    aside = np.zeros(len(index), bool)
    for mask in TASK_MASKS:
        rows = index.rows([mask])
        aside[random.permutation(rows)[: round(fraction * len(rows))]] = True
    parts = {"train": np.flatnonzero(~aside), "val": np.flatnonzero(aside)}
    return {name: (len(rows), _rows(index, rows)) for name, rows in parts.items()}


def _rows(index: Index, numbers: np.ndarray) -> Iterator[Row | Reject]:
    for number in numbers:
        try:
            stored = read_row(index, int(number))
            mask = decode_mask(stored, index.seg_classes) if stored["has_seg"] else None
        except Reject as reject:
            yield reject
            continue
        values = {name: stored[name] for name in ("image_id", "image", "height", "width", "has_det", "has_seg")}
        lists = {name: stored[name] for name in ("boxes", "labels", "difficult")}
        # Images of a data set are upright, whatever their EXIF says.
        yield Row(**values, **lists, mask=mask, exif=False)
