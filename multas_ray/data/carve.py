"""Part of a split set aside: settings are chosen on it, so that the rows that are reported stay unseen."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from multas_ray.data.collate import read_row
from multas_ray.data.index import Index, read_index
from multas_ray.data.row import Row
from multas_ray.data.schema import TASK_MASKS


def carve(path: str, split: str, fraction: float, seed: int) -> dict[str, tuple[int, Iterator[Row]]]:
    """A split in two: `val` with this fraction of the rows of each task mask, drawn at random, `train` with the others.

    Returns:
        Name -> number of rows, and the rows, both in storage order.

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


def _rows(index: Index, numbers: np.ndarray) -> Iterator[Row]:
    for number in numbers:
        stored = read_row(index, int(number))
        mask = np.asarray(Image.open(io.BytesIO(stored["mask"]))) if stored["has_seg"] else None
        yield Row(
            stored["image_id"],
            stored["image"],
            stored["height"],
            stored["width"],
            stored["has_det"],
            stored["has_seg"],
            stored["boxes"],
            stored["labels"],
            stored["difficult"],
            mask,
        )
