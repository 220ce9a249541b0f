"""Packing of objects into one Arrow row: batches pass through Ray Data whole, their arrays are read without a copy.

Objects are pickled, with their large arrays beside the pickle. Such a table is made and read by processes of one run
and lives in Ray's object store, where everything is pickled; it is never written into a file.
"""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

PICKLE = "pickle"
"""Column of the objects without their large arrays."""
LARGE = 65_536
"""Smallest size in bytes of an array with a column of its own. A column costs more than copying a smaller array."""


def pack(objects: Sequence[object]) -> pa.Table:
    """Pack objects into a table of one row; their large arrays are not copied."""
    arrays: list[memoryview] = []

    def in_pickle(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < LARGE:
            return True
        arrays.append(raw)
        return False

    pickled = pickle.dumps(list(objects), protocol=5, buffer_callback=in_pickle)
    columns = {PICKLE: _cell(memoryview(pickled))}
    columns |= {str(number): _cell(array) for number, array in enumerate(arrays)}
    return pa.table(columns)


def _cell(data: memoryview) -> pa.Array:
    # Not pa.array([data]): it copies, and never lets go of the array (pyarrow 26).
    offsets = pa.array([0, data.nbytes], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])


def unpack(table: pa.Table) -> list[Any]:
    """Unpack the objects of a table made by `pack`; their large arrays are views of its memory."""
    pickled, *arrays = map(_content, table.columns)
    objects: list[Any] = pickle.loads(pickled, buffers=arrays)
    return objects


def _content(column: pa.ChunkedArray) -> pa.Buffer:
    [cell] = (chunk for chunk in column.chunks if len(chunk))
    # Not cell[0].as_buffer(): a scalar is a copy (pyarrow 26).
    _, offsets, data = cell.buffers()
    start, end = np.frombuffer(offsets, np.int64)[cell.offset : cell.offset + 2].tolist()
    return data.slice(start, end - start)
