"""Sets of rows that are small at any size: runs of consecutive rows, looked up by bisection."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class RowSet:
    """Rows of an index in storage order, as k runs of consecutive rows."""

    starts: np.ndarray
    """(k,) int64, ascending: first row of each run."""
    sums: np.ndarray
    """(k + 1,) int64: number of rows in the runs before each run, and in all."""

    def __len__(self) -> int:
        """Return the number n of rows."""
        return int(self.sums[-1])

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the rows at some places (m,) of the set, 0..n-1: (m,) int64."""
        run = np.searchsorted(self.sums, places, side="right") - 1
        rows: np.ndarray = self.starts[run] + (places - self.sums[run])
        return rows

    def below(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of rows in the set that lie below each of some rows (m,): (m,) int64.

        For a row of the set, this is its place.
        """
        if not len(self):
            return np.zeros_like(rows)
        run = np.maximum(np.searchsorted(self.starts, rows, side="right") - 1, 0)
        counts: np.ndarray = np.clip(self.sums[run] + (rows - self.starts[run]), 0, self.sums[run + 1])
        return counts
