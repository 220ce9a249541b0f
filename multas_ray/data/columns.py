"""Columns of a row group as NumPy arrays, with the marks of what in them is missing. Free of PyTorch."""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Fault(NamedTuple):
    """Fault of some rows of a group of N."""

    rows: np.ndarray
    """(N,) bool: rows that have it."""
    reason: str
    detail: Callable[[int], str]
    """Returns the message about one of these rows."""


class Lists:
    """Column of lists, as one array of the values of all rows."""

    def __init__(self, column: pa.Array, values: Callable[[pa.Array], np.ndarray]) -> None:
        """Flatten a column of N lists; `values` converts their n values to an array (n, ...)."""
        inside = column.flatten()
        self.lengths = pc.list_value_length(column).fill_null(0).to_numpy()
        """(N,): number of values of each row."""
        self.ends = np.append(0, self.lengths.cumsum())
        self.rows = np.repeat(np.arange(len(column)), self.lengths)
        """(n,): row of each value."""
        self.values = values(inside)
        self.null = is_null(column) | self.rows_of(is_null(inside))
        """(N,) bool: rows whose list, or a value in it, is null."""

    def with_values(self, values: np.ndarray) -> "Lists":
        """Return lists of the same lengths with other values (n, ...)."""
        changed = copy(self)
        changed.values = values
        return changed

    def of(self, row: int) -> np.ndarray:
        """Return the values of a row."""
        return self.values[self.ends[row] : self.ends[row + 1]]

    def rows_of(self, chosen: np.ndarray) -> np.ndarray:
        """Mark the rows (N,) with one of the chosen values (n,) bool."""
        return np.bincount(self.rows[chosen], minlength=len(self.lengths)) > 0


class ClassMask:
    """Column `<task>_unlabelled`: of each row, the classes that nobody looked for in its image."""

    def __init__(self, name: str, columns: Mapping[str, pa.ChunkedArray], annotated: np.ndarray, classes: int) -> None:
        """Lay the column out in an array.

        Args:
            name: name of the column.
            columns: the shard's columns by name; where it is missing, every class was looked for.
            annotated: (N,) bool: rows that are annotated for the task; the class mask of another row says nothing.
            classes: number of classes of the task.
        """
        self.name, self.annotated, self.classes = name, annotated, classes
        self.lists = Lists(columns[name].combine_chunks(), integers) if name in columns else None

    def values(self, place: int) -> dict[str, np.ndarray]:
        """Return the unlabelled classes (n,) int32 of a row by the column's name."""
        if self.lists is None or not self.annotated[place]:
            return {self.name: np.zeros(0, np.int32)}
        return {self.name: self.lists.of(place)}

    def faults(self) -> Iterator[Fault]:
        """Find the annotated rows that name a class which there is not."""
        if self.lists is None:
            return
        numbers, lists = self.lists.values, self.lists
        unknown = (numbers < 0) | (numbers >= self.classes)

        def detail(row: int) -> str:
            number = numbers[unknown & (lists.rows == row)][0].tolist()
            return f"{self.name} {number}, {self.classes} classes are in dataset.json"

        yield Fault(self.annotated & lists.rows_of(unknown), "unknown class", detail)


def missing(name: str, rows: np.ndarray) -> Fault:
    """Fault of rows (N,) bool without a value in a column."""
    return Fault(rows, "no value", lambda row: f"'{name}' is null, or holds a null")


def is_null(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Mark the missing values of a column: (n,) bool."""
    return np.asarray(column.is_null(), bool)


def truths(column: pa.Array) -> np.ndarray:
    """Convert a column to (n,) bool, null as false."""
    array: np.ndarray = column.fill_null(False).to_numpy(zero_copy_only=False)
    return array


def integers(column: pa.Array) -> np.ndarray:
    """Convert a column to (n,) int32: null as -1, and other values clipped to -1..2**31 - 1, both ends invalid."""
    array: np.ndarray = column.cast(pa.int64(), safe=False).fill_null(-1).to_numpy()
    return array.clip(-1, 2**31 - 1).astype(np.int32)


def quadruples(column: pa.Array) -> np.ndarray:
    """Convert a column of lists to (n, 4) float32: NaN for null numbers, and for lists of another length than four."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    numbers = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    array = np.full((len(column), 4), np.nan, np.float32)
    array[lengths == 4] = numbers[np.repeat(lengths == 4, lengths)].reshape(-1, 4)
    return array
