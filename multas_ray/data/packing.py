"""Batches as one Arrow row, so that batches of any shape travel through Ray Data whole and are read without a copy."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

LAYOUT = "layout"
"""The column that says which arrays there are: JSON, for each batch {name: [dtype, shape]}."""


def pack(batches: Sequence[Mapping[str, np.ndarray]]) -> pa.Table:
    """A one-row table that holds batches of named arrays of any dtype (not object) and shape; contiguous ones are not
    copied."""
    columns: dict[str, pa.Array] = {}
    layout: list[dict[str, tuple[str, tuple[int, ...]]]] = []
    for number, batch in enumerate(batches):
        arrays = {name: np.asarray(array, order="C") for name, array in batch.items()}
        layout.append({name: (array.dtype.str, array.shape) for name, array in arrays.items()})
        for name, array in arrays.items():
            # Not pa.array([array.data]): it copies, and never lets go of the array (pyarrow 26).
            offsets = pa.py_buffer(np.array([0, array.nbytes], np.int64))
            buffers = [None, offsets, pa.py_buffer(array)]
            columns[f"{number}.{name}"] = pa.Array.from_buffers(pa.large_binary(), 1, buffers)
    return pa.table({LAYOUT: [json.dumps(layout)], **columns})


def unpack(table: pa.Table) -> list[dict[str, np.ndarray]]:
    """The batches of a one-row table made by `pack`, as read-only views of its memory."""
    return [
        {
            name: np.frombuffer(table[f"{number}.{name}"][0].as_buffer(), dtype).reshape(shape)
            for name, (dtype, shape) in arrays.items()
        }
        for number, arrays in enumerate(json.loads(table[LAYOUT][0].as_py()))
    ]
