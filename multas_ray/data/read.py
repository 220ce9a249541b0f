"""Rows of a split, out of its shards: checked, and decoded. What is wrong with a row is known before it is used."""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache, cached

from multas_ray.config import Task
from multas_ray.data.image import decode_rgb
from multas_ray.data.index import Index, read_shard
from multas_ray.data.pillow import MOST_PIXELS
from multas_ray.data.reject import Reject
from multas_ray.data.schema import SCHEMA
from multas_ray.data.transforms import Sample, to_sample
from multas_ray.errors import UserError
from multas_ray.tasks import PARTS

CACHE_BYTES = 256e6
"""Of row groups that a process keeps: the rows of a shuffled window come from the same few."""
ENCODED = ("image", "mask")
SLACK = 1.0
"""Pixels by which a box may leave its image, to be clipped: programs that count pixels from 1, or take a box's last
pixel for its end, differ by one. Boxes in other coordinates, or of another size of the image, leave it by more."""


def read_row(index: Index, row: int) -> dict[str, Any]:
    """One row of a split: plain Python values, and arrays of boxes (n, 4), labels and difficult (n,).

    Raises:
        Reject: it breaks the data contract.
        UserError: its file is no longer there, or no longer what it was.
    """
    group, place = _cached_group(index, row), int(index.offset[row])
    if place >= len(group):
        raise UserError(f"{index.shard(row)}: has fewer rows than when the run began")
    try:
        return group.row(place)
    except Reject as reject:
        raise Reject(reject.reason, reject.detail, group.ids[place] or f"row {row}") from None


def read_sample(index: Index, row: int) -> tuple[dict[str, Any], Sample]:
    """A row (see `read_row`), and its image with the annotation that it has.

    Raises:
        Reject: it breaks the data contract, or cannot be decoded.
        UserError: its file is no longer there, or no longer what it was.
    """
    values = read_row(index, row)
    try:
        return values, decode(values, index.classes)
    except Reject as reject:
        raise Reject(reject.reason, reject.detail, values["image_id"]) from None


def decode(row: dict[str, Any], classes: Mapping[Task, int]) -> Sample:
    """The image of a row with the annotation that it has.

    Args:
        classes: number of classes of each task.

    Raises:
        Reject: the image or the annotation is broken, or of another size than the row says, or of no class.
    """
    image = decode_rgb(row["image"], upright=False, size=(row["height"], row["width"]))
    annotation: dict[str, np.ndarray] = {}
    for task, count in classes.items():
        if row[f"has_{task}"]:
            annotation |= PARTS[task].rows.decode(row, count)
    return to_sample(image, annotation)


@cached(
    LRUCache(CACHE_BYTES, getsizeof=lambda group: group.bytes),
    key=lambda index, row: (index.path, index.files[index.file[row]], index.group[row], index.digest),
)
def _cached_group(index: Index, row: int) -> "RowGroup":
    return group_of(index, row, SCHEMA.names)


def group_of(index: Index, row: int, columns: list[str]) -> "RowGroup":
    """The rows that were written together with this one, or some of their columns.

    Raises:
        UserError: their file is no longer there, or no longer what it was.
    """
    file, group = index.shard(row), int(index.group[row])
    try:
        return read_shard(file, lambda shard: RowGroup(shard.read_row_group(group, columns), index.det_classes), group)
    except FileNotFoundError:
        raise UserError(f"{file}: was there when the run began, and is gone") from None


Fault = tuple[np.ndarray, str, Callable[[int], str]]
"""(N,) bool: the rows that have it; its name; and what is to be said of one of them."""


class RowGroup:
    """Rows of a shard that were read together: checked all at once, and laid out so that one of them costs little, as
    Arrow's lists become Python's slowly."""

    def __init__(self, table: pa.Table, det_classes: int) -> None:
        """Check rows.

        Args:
            table: the columns of a shard, `image` only where it is wanted.
            det_classes: number of object classes.

        Raises:
            pa.ArrowException: the columns hold no such data: a string, say, that is not UTF-8.
        """
        # A column 'image.x' comes along with 'image'.
        table = table.select([name for name in SCHEMA.names if name in table.column_names])
        table.validate(full=True)
        self.bytes = table.nbytes
        # Not in one piece, as the others: the images of a large group may be more than fits into one.
        self.image, self.mask = (table[name] if name in table.column_names else None for name in ENCODED)
        columns = {name: table[name].combine_chunks() for name in table.column_names if name not in ENCODED}
        self.ids: list[str | None] = columns["image_id"].cast(pa.string()).to_pylist()
        self.height, self.width = _integers(columns["height"]), _integers(columns["width"])
        self.has_det, self.has_seg = _truths(columns["has_det"]), _truths(columns["has_seg"])
        self.labels, boxes = _Lists(columns["labels"], _integers), _Lists(columns["boxes"], _quadruples)
        if "difficult" in columns:
            self.difficult = _Lists(columns["difficult"], _truths)
        else:
            self.difficult = self.labels.with_values(np.zeros(len(self.labels.values), bool))
        sides = np.stack([self.width, self.height] * 2, axis=1)[boxes.rows].astype(np.float32)
        self.boxes = boxes.with_values(boxes.values.clip(0, sides))
        self.rejects: dict[int, Reject] = {}
        """By place, the rows that break the contract."""
        for rows, reason, detail in (*self._nulls(table), *self._others(), *self._wrong_lists(boxes, det_classes)):
            for place in np.flatnonzero(rows).tolist():
                self.rejects.setdefault(place, Reject(reason, detail(place)))

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, place: int) -> dict[str, Any]:
        """See `read_row`.

        Raises:
            Reject: it breaks the data contract.
        """
        if place in self.rejects:
            raise self.rejects[place]
        has_det, has_seg = bool(self.has_det[place]), bool(self.has_seg[place])
        lists = {"boxes": self.boxes, "labels": self.labels, "difficult": self.difficult}
        return {
            "image_id": self.ids[place],
            "height": int(self.height[place]),
            "width": int(self.width[place]),
            "has_det": has_det,
            "has_seg": has_seg,
            **{name: each.of(place) if has_det else each.values[:0] for name, each in lists.items()},
            "image": None if self.image is None else self.image[place].as_py(),
            "mask": None if self.mask is None or not has_seg else self.mask[place].as_py(),
        }

    def _nulls(self, table: pa.Table) -> Iterator[Fault]:
        """Values that are not there. A shard without `mask` has no masks."""
        own: dict[str, np.ndarray] = {name: _null(table[name]) for name in table.column_names}
        own |= {name: getattr(self, name).null & self.has_det for name in ("boxes", "labels", "difficult")}
        own["mask"] = own.get("mask", np.ones(len(self), bool)) & self.has_seg
        for name, rows in own.items():

            def detail(row: int, name: str = name) -> str:
                return f"'{name}' is null, or holds a null"

            yield rows, "no value", detail

    def _wrong_lists(self, boxes: "_Lists", det_classes: int) -> Iterator[Fault]:
        """Args: boxes, before they were clipped."""
        lengths = np.stack([each.lengths for each in (boxes, self.labels, self.difficult)])
        yield (
            self.has_det & (lengths != lengths[0]).any(axis=0),
            "lists of different lengths",
            lambda row: "{} boxes, {} labels, {} difficult".format(*lengths[:, row]),
        )
        values, clipped, labels = boxes.values, self.boxes.values, self.labels.values
        wrong = {
            "broken box": (boxes, ~np.isfinite(values).all(axis=1)),
            "box outside its image": (boxes, (np.abs(values - clipped) > SLACK).any(axis=1)),
            "inverted or empty box": (boxes, (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)),
            "unknown class": (self.labels, (labels < 0) | (labels >= det_classes)),
        }
        for reason, (lists, chosen) in wrong.items():

            def detail(row: int, lists: _Lists = lists, chosen: np.ndarray = chosen) -> str:
                found = lists.values[chosen & (lists.rows == row)][0].tolist()
                if lists is self.labels:
                    return f"label {found}, {det_classes} classes are in dataset.json"
                return f"{found} in {self.width[row]}x{self.height[row]} pixels"

            yield self.has_det & lists.rows_of(chosen), reason, detail

    def _others(self) -> Iterator[Fault]:
        unusable = [image_id is not None and (not image_id or "\0" in image_id) for image_id in self.ids]
        yield np.array(unusable, bool), "unusable image_id", lambda row: repr(self.ids[row])
        pixels = self.height.astype(np.int64) * self.width
        size = (self.height < 1) | (self.width < 1) | (pixels > MOST_PIXELS)
        yield size, "impossible size", lambda row: f"height {self.height[row]}, width {self.width[row]}"


class _Lists:
    """A column of lists."""

    def __init__(self, column: pa.Array, values: Callable[[pa.Array], np.ndarray]) -> None:
        """Args: values makes an array of the column's values, of all rows."""
        inside = column.flatten()
        self.lengths = pc.list_value_length(column).fill_null(0).to_numpy()
        """(N,): each row's number of values."""
        self.ends = np.append(0, self.lengths.cumsum())
        self.rows = np.repeat(np.arange(len(column)), self.lengths)
        """(n,): the row of each value."""
        self.values = values(inside)
        self.null = _null(column) | self.rows_of(_null(inside))
        """(N,) bool: rows whose list is null, or a value of it."""

    def with_values(self, values: np.ndarray) -> "_Lists":
        """Such lists of other values."""
        changed = copy(self)
        changed.values = values
        return changed

    def of(self, row: int) -> np.ndarray:
        """A row's values."""
        return self.values[self.ends[row] : self.ends[row + 1]]

    def rows_of(self, chosen: np.ndarray) -> np.ndarray:
        """(N,) bool: the rows that have one of the values that are chosen, (n,) bool."""
        return np.bincount(self.rows[chosen], minlength=len(self.lengths)) > 0


def _null(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.is_null(), bool)


def _truths(column: pa.Array) -> np.ndarray:
    """(n,) bool, null as false."""
    return column.fill_null(False).to_numpy(zero_copy_only=False)


def _integers(column: pa.Array) -> np.ndarray:
    """(n,) int32. What is null or beyond it becomes -1 or the greatest, and is as wrong there."""
    return column.cast(pa.int64(), safe=False).fill_null(-1).to_numpy().clip(-1, 2**31 - 1).astype(np.int32)


def _quadruples(column: pa.Array) -> np.ndarray:
    """(n, 4) float32 of a column of lists: NaN for numbers that are null, and for lists of other than four."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    numbers = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    found = np.full((len(column), 4), np.nan, np.float32)
    found[lengths == 4] = numbers[np.repeat(lengths == 4, lengths)].reshape(-1, 4)
    return found
