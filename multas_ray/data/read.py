"""Reading of a split's rows from its shards: checked against the data contract before use."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from cachetools import LRUCache, cached

from multas_ray.config import TASKS, Task
from multas_ray.data.classes import ClassMap
from multas_ray.data.columns import Fault, integers, is_null, missing, truths
from multas_ray.data.image import EncodedImage
from multas_ray.data.index import Index, Origin, read_shard
from multas_ray.data.pillow import MAX_PIXELS
from multas_ray.data.reject import Reject
from multas_ray.data.schema import ROW_FIELDS, SCHEMA
from multas_ray.data.transforms import Sample
from multas_ray.errors import UserError
from multas_ray.tasks import PARTS

CACHE_BYTES = 256e6
"""Size of a process's cache of row groups: the rows of a shuffled window come from the same few."""


def read_row(index: Index, row: int) -> dict[str, Any]:
    """Read one row of a split: plain Python values, and arrays of boxes (n, 4), labels and difficult (n,).

    Args:
        index: index of the split.
        row: number of the row in the index.

    Raises:
        Reject: the row breaks the data contract.
        UserError: its file is missing, or has changed since the run began.
    """
    group, place = _cached_group(index, row), _place(index, row)[2]
    if place >= len(group):
        raise UserError(f"{index.shard(row)}: has fewer rows than when the run began")
    try:
        return group.row(place)
    except Reject as reject:
        raise Reject(reject.reason, reject.detail, group.ids[place] or f"row {row}") from None


def read_sample(index: Index, row: int) -> tuple[dict[str, Any], Sample]:
    """Read a row as `read_row` does, and decode its annotation.

    Args:
        index: index of the split.
        row: number of the row in the index.

    Raises:
        Reject: the row breaks the data contract, or its annotation cannot be decoded.
        UserError: its file is missing, or has changed since the run began.
    """
    origin = index.origin_of(row)
    values = {"image_id": f"row {row}"}
    try:
        values = read_row(index, row)
        sample = decode(values, origin.classes, origin.maps)
    except Reject as reject:
        raise Reject(reject.reason, reject.detail, _qualified(origin, reject.image_id or values["image_id"])) from None
    return _in_the_run(values, origin), sample


def _qualified(origin: Origin, image_id: str) -> str:
    """Return the id of a row that is unique in the run: `source/id` where there are several data sets."""
    return f"{origin.name}/{image_id}" if origin.name else image_id


def _in_the_run(values: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """Return the values of a row with its id and its class masks as they are in the run."""
    changed: dict[str, Any] = {"image_id": _qualified(origin, values["image_id"])}
    for task, each in origin.maps.items():
        changed[f"has_{task}"] = values[f"has_{task}"] and not each.empty
        if changed[f"has_{task}"]:
            changed[f"{task}_unlabelled"] = each.marks(values[f"{task}_unlabelled"])
    return values | changed


def decode(row: dict[str, Any], classes: Mapping[Task, int], maps: Mapping[Task, ClassMap] | None = None) -> Sample:
    """Decode a row's annotation of each task that it is annotated for.

    Args:
        row: values of the row, as `read_row` returns them.
        classes: number of classes that the row's data set has of each task.
        maps: these classes by those of the run; a task without a map has the run's.

    Raises:
        Reject: the annotation is broken, of another size than the row says, or of an unknown class.
    """
    sample: dict[str, Any] = {"image": EncodedImage(row["image"], row["height"], row["width"])}
    for task, count in classes.items():
        if row[f"has_{task}"]:
            own = PARTS[task].rows.decode(row, count)
            sample |= PARTS[task].rows.translate(own, maps[task]) if maps and task in maps else own
    return sample


@cached(
    LRUCache(CACHE_BYTES, getsizeof=lambda group: group.bytes),
    key=lambda index, row: (index.origin_of(row).path, *_place(index, row)[:2], index.digest),
)
def _cached_group(index: Index, row: int) -> "RowGroup":
    return group_of(index, row, SCHEMA.names)


def _place(index: Index, row: int) -> tuple[str, int, int]:
    """Find a row: path of its file, row group, and place in the row group."""
    file, group, place = (int(number) for number in index.locate(np.array(row)))
    return index.files[file], group, place


def group_of(index: Index, row: int, columns: list[str]) -> "RowGroup":
    """Read the row group of a row.

    Args:
        index: index of the split.
        row: number of the row in the index.
        columns: names of the columns to read.

    Raises:
        UserError: the file is missing, or has changed since the run began.
    """
    file, group, classes = index.shard(row), _place(index, row)[1], index.origin_of(row).classes
    try:
        return read_shard(file, lambda shard: RowGroup(shard.read_row_group(group, columns), classes), [group])
    except FileNotFoundError:
        raise UserError(f"{file}: was there when the run began, and is gone") from None


class RowGroup:
    """Rows of a shard that are read and checked together.

    Their values are laid out in arrays, so that reading one row is cheap: Arrow's lists become Python's slowly.
    """

    def __init__(self, table: pa.Table, classes: Mapping[Task, int]) -> None:
        """Check rows.

        Args:
            table: columns of a shard; `image` may be missing.
            classes: number of classes of each task.

        Raises:
            pa.ArrowException: the columns hold invalid data, such as a string that is not UTF-8.
        """
        # Reading 'image' reads a column 'image.x' too.
        table = table.select([name for name in SCHEMA.names if name in table.column_names])
        table.validate(full=True)
        self.bytes = table.nbytes
        columns = dict(zip(table.column_names, table.columns, strict=True))
        self.image = columns.get("image")
        self.ids: list[str | None] = columns["image_id"].cast(pa.string()).to_pylist()
        self.height, self.width = (integers(columns[name].combine_chunks()) for name in ("height", "width"))
        sizes = np.stack([self.height, self.width], axis=1)
        self.has = {task: truths(columns[f"has_{task}"].combine_chunks()) for task in TASKS}
        self.annotation = {
            task: PARTS[task].rows.Columns(columns, self.has[task], sizes, classes[task]) for task in TASKS
        }
        self.rejects: dict[int, Reject] = {}
        """Rows that break the contract, by place."""
        faults = [*self._faults(columns), *(fault for each in self.annotation.values() for fault in each.faults())]
        for rows, reason, detail in faults:
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
        values: dict[str, Any] = {
            "image_id": self.ids[place],
            "height": int(self.height[place]),
            "width": int(self.width[place]),
            "image": None if self.image is None else self.image[place].as_py(),
        }
        for task, columns in self.annotation.items():
            values |= {f"has_{task}": bool(self.has[task][place])} | columns.values(place)
        return values

    def _faults(self, columns: Mapping[str, pa.ChunkedArray]) -> Iterator[Fault]:
        """Find missing values, unusable ids and impossible sizes."""
        for field in ROW_FIELDS:
            if field.name in columns:
                yield missing(field.name, is_null(columns[field.name]))
        unusable = [image_id is not None and (not image_id or "\0" in image_id) for image_id in self.ids]
        yield Fault(np.array(unusable, bool), "unusable image_id", lambda row: repr(self.ids[row]))
        pixels = self.height.astype(np.int64) * self.width
        size = (self.height < 1) | (self.width < 1) | (pixels > MAX_PIXELS)
        yield Fault(size, "impossible size", lambda row: f"height {self.height[row]}, width {self.width[row]}")
