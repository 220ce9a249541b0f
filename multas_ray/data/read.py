"""Reading of a split's rows from its shards: checked against the data contract before use, then decoded."""

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
from multas_ray.data.pillow import MAX_PIXELS
from multas_ray.data.reject import Reject
from multas_ray.data.schema import SCHEMA
from multas_ray.data.transforms import Sample, to_sample
from multas_ray.errors import UserError
from multas_ray.tasks import PARTS

CACHE_BYTES = 256e6
"""Size of a process's cache of row groups: the rows of a shuffled window come from the same few."""
ENCODED = ("image", "mask")
"""Columns of encoded images."""
SLACK = 1.0
"""Pixels by which a box may exceed its image; it is clipped. Programs that count pixels from 1, or take a box's last
pixel for its end, differ by one. Boxes in other coordinates, or for another size of the image, exceed it by more."""


def read_row(index: Index, row: int) -> dict[str, Any]:
    """Read one row of a split: plain Python values, and arrays of boxes (n, 4), labels and difficult (n,).

    Args:
        index: index of the split.
        row: number of the row in the index.

    Raises:
        Reject: the row breaks the data contract.
        UserError: its file is missing, or has changed since the run began.
    """
    group, place = _cached_group(index, row), int(index.offset[row])
    if place >= len(group):
        raise UserError(f"{index.shard(row)}: has fewer rows than when the run began")
    try:
        return group.row(place)
    except Reject as reject:
        raise Reject(reject.reason, reject.detail, group.ids[place] or f"row {row}") from None


def read_sample(index: Index, row: int) -> tuple[dict[str, Any], Sample]:
    """Read a row as `read_row` does, and decode its image and annotation.

    Args:
        index: index of the split.
        row: number of the row in the index.

    Raises:
        Reject: the row breaks the data contract, or cannot be decoded.
        UserError: its file is missing, or has changed since the run began.
    """
    values = read_row(index, row)
    try:
        return values, decode(values, index.classes)
    except Reject as reject:
        raise Reject(reject.reason, reject.detail, values["image_id"]) from None


def decode(row: dict[str, Any], classes: Mapping[Task, int]) -> Sample:
    """Decode the image of a row, and its annotation of each task that it is annotated for.

    Args:
        row: values of the row, as `read_row` returns them.
        classes: number of classes of each task.

    Raises:
        Reject: the image or the annotation is broken, of another size than the row says, or of an unknown class.
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
    """Read the row group of a row.

    Args:
        index: index of the split.
        row: number of the row in the index.
        columns: names of the columns to read.

    Raises:
        UserError: the file is missing, or has changed since the run began.
    """
    file, group = index.shard(row), int(index.group[row])
    try:
        return read_shard(file, lambda shard: RowGroup(shard.read_row_group(group, columns), index.det_classes), group)
    except FileNotFoundError:
        raise UserError(f"{file}: was there when the run began, and is gone") from None


Fault = tuple[np.ndarray, str, Callable[[int], str]]
"""Fault of some rows of a group: (N,) bool of these rows; its name; and the message about one of them."""


class RowGroup:
    """Rows of a shard that are read and checked together.

    Their values are laid out in arrays, so that reading one row is cheap: Arrow's lists become Python's slowly.
    """

    def __init__(self, table: pa.Table, det_classes: int) -> None:
        """Check rows.

        Args:
            table: columns of a shard; `image` may be missing.
            det_classes: number of object classes.

        Raises:
            pa.ArrowException: the columns hold invalid data, such as a string that is not UTF-8.
        """
        # Reading 'image' reads a column 'image.x' too.
        table = table.select([name for name in SCHEMA.names if name in table.column_names])
        table.validate(full=True)
        self.bytes = table.nbytes
        # Not combined into one chunk, as the others are: the images of a large group may exceed the limit of one.
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
        """Rows that break the contract, by place."""
        for rows, reason, detail in (*self._nulls(table), *self._others(), *self._wrong_lists(boxes, det_classes)):
            for place in np.flatnonzero(rows).tolist():
                self.rejects.setdefault(place, Reject(reason, detail(place)))

    def __len__(self) -> int:
        """Return the number N of rows."""
        return len(self.ids)

    def row(self, place: int) -> dict[str, Any]:
        """Return the values of one row, as `read_row` does.

        Args:
            place: 0..N-1.

        Raises:
            Reject: the row breaks the data contract.
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
        """Find missing values. A shard without a column `mask` has no masks."""
        nulls: dict[str, np.ndarray] = {name: _null(table[name]) for name in table.column_names}
        nulls |= {name: getattr(self, name).null & self.has_det for name in ("boxes", "labels", "difficult")}
        nulls["mask"] = nulls.get("mask", np.ones(len(self), bool)) & self.has_seg
        for name, rows in nulls.items():

            def detail(row: int, name: str = name) -> str:
                return f"'{name}' is null, or holds a null"

            yield rows, "no value", detail

    def _wrong_lists(self, boxes: "_Lists", det_classes: int) -> Iterator[Fault]:
        """Find faults of the lists; `boxes` are those before clipping."""
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
                value = lists.values[chosen & (lists.rows == row)][0].tolist()
                if lists is self.labels:
                    return f"label {value}, {det_classes} classes are in dataset.json"
                return f"{value} in {self.width[row]}x{self.height[row]} pixels"

            yield self.has_det & lists.rows_of(chosen), reason, detail

    def _others(self) -> Iterator[Fault]:
        """Find unusable ids and impossible sizes."""
        unusable = [image_id is not None and (not image_id or "\0" in image_id) for image_id in self.ids]
        yield np.array(unusable, bool), "unusable image_id", lambda row: repr(self.ids[row])
        pixels = self.height.astype(np.int64) * self.width
        size = (self.height < 1) | (self.width < 1) | (pixels > MAX_PIXELS)
        yield size, "impossible size", lambda row: f"height {self.height[row]}, width {self.width[row]}"


class _Lists:
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
        self.null = _null(column) | self.rows_of(_null(inside))
        """(N,) bool: rows whose list, or a value in it, is null."""

    def with_values(self, values: np.ndarray) -> "_Lists":
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


def _null(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.is_null(), bool)


def _truths(column: pa.Array) -> np.ndarray:
    """Convert a column to (n,) bool, null as false."""
    truths: np.ndarray = column.fill_null(False).to_numpy(zero_copy_only=False)
    return truths


def _integers(column: pa.Array) -> np.ndarray:
    """Convert a column to (n,) int32: null as -1, and other values clipped to -1..2**31 - 1, both ends invalid."""
    integers: np.ndarray = column.cast(pa.int64(), safe=False).fill_null(-1).to_numpy()
    return integers.clip(-1, 2**31 - 1).astype(np.int32)


def _quadruples(column: pa.Array) -> np.ndarray:
    """Convert a column of lists to (n, 4) float32: NaN for null numbers, and for lists of another length than four."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    numbers = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    quadruples = np.full((len(column), 4), np.nan, np.float32)
    quadruples[lengths == 4] = numbers[np.repeat(lengths == 4, lengths)].reshape(-1, 4)
    return quadruples
