"""Indexes of rows that are nowhere, laid out row by row."""

from collections.abc import Sequence

import numpy as np

from multas_ray.data.footer import runs
from multas_ray.data.index import Index


def index_of(groups: Sequence[Sequence[Sequence[int]]]) -> Index:
    """An index from the kinds of the rows of each row group of each file."""
    blocks = [(file, group, len(kinds)) for file, of in enumerate(groups) for group, kinds in enumerate(of) if kinds]
    rows = np.array([kind for of in groups for kinds in of for kind in kinds], np.uint8)
    found = runs(rows)
    return Index(
        path="memory",
        files=tuple(f"train/{number}.parquet" for number in range(len(groups))),
        file=np.array([file for file, _, _ in blocks], np.int32),
        group=np.array([group for _, group, _ in blocks], np.int32),
        offset=np.zeros(len(blocks), np.int32),
        block_starts=np.cumsum([0, *(size for _, _, size in blocks)]),
        run_starts=np.cumsum([0, *(count for _, count in found)]),
        kinds=np.array([kind for kind, _ in found], np.uint8),
    )
