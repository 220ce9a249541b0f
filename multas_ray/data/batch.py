"""A batch as one Arrow row, so that a batch of any shape travels through Ray Data whole and is read without a copy."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa


def pack(arrays: Mapping[str, np.ndarray]) -> pa.Table:
    """A one-row table that holds named arrays of any dtype (not object) and shape; contiguous ones are not copied."""
    columns: dict[str, pa.Array] = {}
    for name, array in arrays.items():
        array = np.asarray(array, order="C")
        # Not pa.array([array.data]): it copies, and never lets go of the array (pyarrow 26).
        offsets = pa.py_buffer(np.array([0, array.nbytes], np.int64))
        columns[name] = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(array)])
        columns[f"{name}.shape"] = pa.array([list(array.shape)], pa.list_(pa.int64()))
        columns[f"{name}.dtype"] = pa.array([array.dtype.str], pa.string())
    return pa.table(columns)


def unpack(table: pa.Table) -> dict[str, np.ndarray]:
    """The arrays of a one-row table made by `pack`, as read-only views of its memory."""
    arrays: dict[str, np.ndarray] = {}
    for name in table.column_names:
        if f"{name}.dtype" in table.column_names:
            dtype = np.dtype(table[f"{name}.dtype"][0].as_py())
            shape = table[f"{name}.shape"][0].as_py()
            arrays[name] = np.frombuffer(table[name][0].as_buffer(), dtype).reshape(shape)
    return arrays
