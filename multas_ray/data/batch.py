"""Typed batches: made by the data tasks, carried by Ray, read by training and evaluation. NumPy only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from multas_ray.config import Task
from multas_ray.data.geometry import Geometry
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


def marked(some: Some[np.ndarray] | None, rows: np.ndarray) -> np.ndarray | None:
    """Look rows up that need not be in a `Some` of marks.

    Args:
        some: marks (k, C) bool of some rows; None for those of none.
        rows: (n,) int64, ascending.

    Returns:
        (n, C) bool, false for rows that are not in it; None if none of them is.
    """
    if some is None or not np.isin(rows, some.rows).any():
        return None
    marks = np.zeros((len(rows), some.values.shape[1]), bool)
    there = np.isin(rows, some.rows)
    marks[there] = some.at(rows[there])
    return marks


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


class Compared(NamedTuple):
    """What of the answers for n rows is compared with a student's output."""

    classes: np.ndarray
    """(n, C) bool: classes to learn from the teacher."""
    merged: np.ndarray
    """(n, C) bool: classes that count as background on both sides, itself included; none where there is no background,
    or the teacher does not know it."""


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
    unlabelled: Mapping[Task, Some[np.ndarray]] = field(default_factory=dict)
    """(k, C) bool for the rows of `truth` in which some of the task's C classes are unlabelled: these classes."""
    rejected: tuple[RejectedRow, ...] = ()
    geometry: tuple[Geometry, ...] = ()
    """Where each image lies in its original."""
    distil: Mapping[Task, Some[Compared]] = field(default_factory=dict)
    """For the rows that the teacher of a distilled task answers for: what to learn from it."""
    weak: Mapping[Task, Some[Any]] = field(default_factory=dict)
    """Annotation, of the type of `truth`, derived from another task's."""
    weak_unlabelled: Mapping[Task, Some[np.ndarray]] = field(default_factory=dict)
    """(k, C) bool: as `unlabelled`, for the rows of `weak`."""
    soft: Mapping[Task, Any] = field(default_factory=dict)
    """Stored answers of the teachers (`teacher.Answer`) for the rows `distil`, in the same order."""


def distilled_rows(batch: TrainBatch) -> dict[Task, np.ndarray]:
    """Return the rows (n,) int64 that a teacher answers for, for each task that has such rows."""
    return {task: some.rows for task, some in batch.distil.items() if len(some.rows)}


@dataclass(frozen=True)
class AnnotatedImage:
    """Annotation of one image for one task, which a prediction is scored by."""

    image_id: str
    """Id of the image, unique in the data set."""
    size: tuple[int, int]
    """Height and width in pixels."""
    truth: Any
    """Annotation in these pixels, as `original` of the task's rows.py returns it."""
    unlabelled: np.ndarray | None = None
    """(C,) bool: classes that nobody looked for in it, and that it says nothing about; None for none."""


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
    unlabelled: Mapping[Task, Some[np.ndarray]] = field(default_factory=dict)
    """(k, C) bool for the rows of `truth` in which some of the task's C classes are unlabelled: these classes."""
    sources: tuple[str, ...] = ()
    """Name of the data set of each image, where there are several."""
    rejected: tuple[RejectedRow, ...] = ()

    def annotated(self, task: Task, row: int) -> AnnotatedImage | None:
        """Return a row's image with its annotation for a task; None if it has none."""
        if row not in self.truth[task].rows:
            return None
        one = np.array([row])
        [truth] = self.truth[task].at(one)
        marks = marked(self.unlabelled.get(task), one)
        return AnnotatedImage(self.ids[row], self.sizes[row], truth, None if marks is None else marks[0])


@dataclass(frozen=True)
class Failure:
    """Message of a `UserError` that ended a stream; raised, it would reach the workers wrapped in one of Ray Data's."""

    message: str
