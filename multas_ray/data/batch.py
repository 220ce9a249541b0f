"""The batch, typed: what the data tasks make, Ray carries, and training and evaluation take. NumPy only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from multas_ray.config import Task
from multas_ray.data.plan import Part

T = TypeVar("T")


@dataclass(frozen=True)
class Some(Generic[T]):
    """Something of some rows of a batch."""

    rows: np.ndarray
    """(k,) int64, ascending: rows of the batch."""
    values: T
    """One entry for each of these rows: an array or tensor (k, ...), a tuple of k entries, or a NamedTuple of arrays or
    tensors (k, ...) in which None stands for what is not there."""

    def at(self, rows: np.ndarray) -> T:
        """The entries of some of these rows.

        Args:
            rows: (n,) int64, ascending, each one of `self.rows`.

        Raises:
            LookupError: a row is not among them.
        """
        places = np.searchsorted(self.rows, rows)
        if not np.array_equal(self.rows[places[places < len(self.rows)]], rows):
            raise LookupError(f"rows {rows} of a batch, but there is something of {self.rows} only")
        return take(self.values, places)


def take(values: T, places: np.ndarray) -> T:
    """The entries at some places of the values of a `Some`, (n,) int64."""
    if isinstance(values, tuple) and not hasattr(values, "_fields"):
        return cast(T, tuple(values[place] for place in places.tolist()))
    return mapped(values, lambda array: array[places])


def mapped(values: T, change: Callable[[Any], Any]) -> T:
    """An array or tensor, or each one of a NamedTuple of them, changed; None stays None."""
    if isinstance(values, tuple):
        record: Any = type(values)
        return cast(T, record(*(None if each is None else change(each) for each in values)))
    return cast(T, change(values))


class RejectedRow(NamedTuple):
    """A row that cannot be used, and why."""

    image_id: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """One worker's share of one training step, augmented."""

    part: Part
    """Step, rank, and the rows of the split that are in it: without those that cannot be used."""
    ids: tuple[str, ...]
    """Of the b images. Empty for the black image that stands in where no row of the part can be used, since a network
    needs an image."""
    images: np.ndarray
    """(b, 3, size, size) uint8."""
    truth: Mapping[Task, Some[Any]]
    """Annotation of the rows that have it, as `collate` of the task's rows.py makes it."""
    rejected: tuple[RejectedRow, ...] = ()
    distil: Mapping[Task, np.ndarray] = field(default_factory=dict)
    """(n,) int64, of each distilled task: the rows that its teacher is asked for."""
    weak: Mapping[Task, Some[Any]] = field(default_factory=dict)
    """Annotation, of the kind of `truth`, that follows from another task's."""
    soft: Mapping[Task, Any] = field(default_factory=dict)
    """Stored answers of the teachers (`teacher.Answer`) for the rows `distil`, in their order."""


@dataclass(frozen=True, kw_only=True)
class EvalBatch:
    """One worker's share of one evaluation batch, with the annotation in the pixels of the original images."""

    part: Part
    """As of `TrainBatch`."""
    ids: tuple[str, ...]
    """Of the b images."""
    images: np.ndarray
    """(b, 3, size, size) uint8."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of the original images in pixels."""
    truth: Mapping[Task, Some[tuple[Any, ...]]]
    """Annotation of the rows that have it, an entry a row, as `original` of the task's rows.py makes it."""
    rejected: tuple[RejectedRow, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Stands in a stream for what ended it: a `UserError`, which would else reach the workers as one of Ray Data's."""

    message: str
