"""Typed batches: made by the data tasks, carried by Ray, read by training and evaluation. NumPy only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from multas_ray.config import Task
from multas_ray.data.plan import Part

T = TypeVar("T")


@dataclass(frozen=True)
class Some(Generic[T]):
    """Values for some rows of a batch."""

    rows: np.ndarray
    """(k,) int64, ascending: numbers of these rows in the batch."""
    values: T
    """One entry for each of these rows: an array or tensor (k, ...), a tuple of k entries, or a NamedTuple of arrays or
    tensors (k, ...) in which None stands for an absent field."""

    def at(self, rows: np.ndarray) -> T:
        """Take the entries of some of these rows.

        Args:
            rows: (n,) int64, ascending, each in `self.rows`.

        Raises:
            LookupError: a row is not in `self.rows`.
        """
        places = np.searchsorted(self.rows, rows)
        if not np.array_equal(self.rows[places[places < len(self.rows)]], rows):
            raise LookupError(f"rows {rows} of a batch, but there is something of {self.rows} only")
        return take(self.values, places)


def take(values: T, places: np.ndarray) -> T:
    """Take the entries at places (n,) int64 from the values of a `Some`."""
    if isinstance(values, tuple) and not hasattr(values, "_fields"):
        return cast(T, tuple(values[place] for place in places.tolist()))
    return mapped(values, lambda array: array[places])


def mapped(values: T, change: Callable[[Any], Any]) -> T:
    """Change an array or tensor, or each field of a NamedTuple of them; None stays None."""
    if isinstance(values, tuple):
        record: Any = type(values)
        return cast(T, record(*(None if each is None else change(each) for each in values)))
    return cast(T, change(values))


class RejectedRow(NamedTuple):
    """Row that cannot be used, with the reason."""

    image_id: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """One worker's share of one training step, augmented."""

    part: Part
    """Step, rank, and the rows of the split in this batch, without those that cannot be used."""
    ids: tuple[str, ...]
    """Ids of the b images. "" for the black image that is used where no row of the part can be, since a network
    needs an image."""
    images: np.ndarray
    """(b, 3, size, size) uint8."""
    truth: Mapping[Task, Some[Any]]
    """Annotation of the annotated rows of each task, as `collate` of its rows.py returns it."""
    rejected: tuple[RejectedRow, ...] = ()
    distil: Mapping[Task, np.ndarray] = field(default_factory=dict)
    """(n,) int64 for each distilled task: rows that its teacher answers for."""
    weak: Mapping[Task, Some[Any]] = field(default_factory=dict)
    """Annotation, of the type of `truth`, derived from another task's."""
    soft: Mapping[Task, Any] = field(default_factory=dict)
    """Stored answers of the teachers (`teacher.Answer`) for the rows `distil`, in the same order."""


@dataclass(frozen=True, kw_only=True)
class EvalBatch:
    """One worker's share of one evaluation batch, with the annotation in the pixels of the original images."""

    part: Part
    """Rows of the split in this batch, without those that cannot be used."""
    ids: tuple[str, ...]
    """Ids of the b images."""
    images: np.ndarray
    """(b, 3, size, size) uint8."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of the original images in pixels."""
    truth: Mapping[Task, Some[tuple[Any, ...]]]
    """Annotation of the annotated rows of each task, an entry a row, as `original` of its rows.py returns it."""
    rejected: tuple[RejectedRow, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Message of a `UserError` that ended a stream; raised, it would reach the workers wrapped in one of Ray Data's."""

    message: str
