"""Chunk of a split's items, read, checked and written as one Parquet file: what a task of `write_dataset` does."""

import itertools
import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multas_ray.config import TASK_MASKS, TASKS, Task
from multas_ray.data.footer import runs, to_metadata
from multas_ray.data.pillow import encode_labels
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, check_row
from multas_ray.data.schema import SCHEMA
from multas_ray.data.shrink import shrink
from multas_ray.errors import RunError, UserError, first_line, quoted
from multas_ray.storage import StoragePath


class Layout(NamedTuple):
    """Sizes of the Parquet files and of their row groups: a function of a split's items, whoever reads them."""

    chunk: int = 256
    """Number of items that one task reads, and whose rows make one file."""
    group_rows: int = 64
    """Largest number of rows of a row group, the unit that training reads and shuffles."""
    group_bytes: int = 8_000_000
    """Bytes of images that fill a row group: with large images too, a window of groups that are shuffled together fits
    into a data task's cache."""

    def chunks(self, items: Sequence[Any]) -> int:
        """Return the number of chunks that the items of a split are divided into."""
        return -(-len(items) // self.chunk)

    def items(self, items: Sequence[Any], number: int) -> list[Any]:
        """Return the items of a chunk of a split."""
        return [items[place] for place in range(number * self.chunk, min((number + 1) * self.chunk, len(items)))]


LAYOUT = Layout()


@dataclass(frozen=True)
class Work:
    """What the chunks of a split have in common. It can be pickled."""

    split: str
    read: Callable[[Any], Row | Reject | None]
    """See `formats.source.Split`."""
    classes: Mapping[Task, int]
    """Number of classes of each task."""
    max_side: int | None
    """Pixels: longer images are shrunk; None: none is."""
    folder: str
    """URI of the folder of the Parquet files."""
    first: int
    """Number of the first chunk's file."""
    records: str
    """URI of the folder of the records of finished chunks."""
    layout: Layout

    def file(self, number: int) -> StoragePath:
        """Return the Parquet file of a chunk's rows; there is none where the chunk has no rows."""
        return StoragePath(self.folder) / f"part-{self.first + number:05d}.parquet"

    def record(self, number: int) -> StoragePath:
        """Return the file of a chunk's record."""
        return StoragePath(self.records) / f"{number:05d}.json"


@dataclass
class Record:
    """What was made of a chunk. It is written when the chunk is finished, after the Parquet file."""

    taken: list[str]
    """Ids that earlier rows of the split have; rows with these ids are rejected."""
    ids: list[str] = field(default_factory=list)
    """Ids of the rows that were written, in the order of their items."""
    refused: list[str] = field(default_factory=list)
    """Ids of the rows that were read, but not written."""
    rejected: list[dict[str, str]] = field(default_factory=list)
    """Lines of rejected.jsonl, in the order of the items."""
    rows: dict[str, int] = field(default_factory=dict)
    """Number of written rows by task mask."""
    boxes: dict[str, int] = field(default_factory=dict)
    """Number of their boxes by task mask."""
    notes: dict[str, int] = field(default_factory=dict)
    """Sums of their notes, see `Row`."""
    pixels: list[int] = field(default_factory=lambda: [0] * 256)
    """Number of pixels of their masks by value."""


def read_record(file: StoragePath) -> Record | None:
    """Read the record of a finished chunk; None where it cannot be read."""
    try:
        return Record(**json.loads(file.read_text()))
    except (ValueError, TypeError):
        return None


def write_chunk(
    work: Work,
    number: int,
    items: Sequence[Any],
    taken: Iterable[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> Record:
    """Write the rows of a chunk, and then its record.

    The bytes of both files depend on the arguments alone. Memory holds the encoded images of a row group.

    Args:
        work: what to do with the items of the split.
        number: number of the chunk.
        items: items of the chunk.
        taken: ids that earlier rows of the split have.
        advance: called for every item that was read.

    Returns:
        The record that was written.

    Raises:
        RunError: reading an item failed with anything but a `Reject`, or a file cannot be written.
    """
    record = Record(sorted(taken))
    file = work.file(number)
    try:
        _write_shard(file, _row_groups(_accepted(work, items, record, advance), work.layout))
        work.record(number).write_text(json.dumps(asdict(record)))
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({first_line(error)})") from None
    return record


class _Encoded(NamedTuple):
    """Row as it is stored."""

    kind: int
    columns: dict[str, Any]
    """Values of the columns of `SCHEMA`."""


def _accepted(work: Work, items: Sequence[Any], record: Record, advance: Callable[[], None]) -> Iterator[_Encoded]:
    """Yield the rows that keep the data contract and whose ids are new; enter these and the others into the record."""
    seen = set(record.taken)
    rows, boxes, notes = Counter[str](), Counter[str](), Counter[str]()
    pixels = np.zeros(256, np.int64)
    for item in items:
        row = _attempted(work.split, item, work.read, item)
        advance()
        if row is None:
            continue
        if isinstance(row, Row):
            checked = _attempted(work.split, item, _checked, row, work, seen)
            if isinstance(checked, Reject):
                record.refused.append(row.image_id)
        else:
            checked = row
        if isinstance(checked, Reject):
            # A reader's own reject knows its image; one of a check has no id yet.
            line = {"image_id": row.image_id, "reason": checked.reason, "detail": checked.detail}
            record.rejected.append({"split": work.split, **line})
            continue
        assert checked is not None
        seen.add(checked.image_id)
        record.ids.append(checked.image_id)
        rows[checked.task_mask] += 1
        boxes[checked.task_mask] += len(checked.boxes)
        notes.update(checked.notes)
        if checked.mask is not None:
            pixels += np.bincount(checked.mask.ravel(), minlength=256)
        yield _encoded(checked)
    record.rows = {mask: rows[mask] for mask in TASK_MASKS if rows[mask]}
    record.boxes, record.notes, record.pixels = dict(boxes), dict(notes), pixels.tolist()


def _attempted(split: str, item: Any, read: Callable[..., Row | Reject | None], *arguments: Any) -> Row | Reject | None:
    """Call a function that reads or checks the row of an item; a `Reject` that it raises is returned.

    Raises:
        RunError: it failed with anything but a `Reject`; names the item.
    """
    try:
        return read(*arguments)
    except Reject as reject:
        return reject
    except (UserError, RunError):
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise RunError(
            f"{split}: {quoted(item)} cannot be read: {type(error).__name__}: {first_line(error)} "
            f"({Path(place.filename).name}, line {place.lineno})"
        ) from None


def _checked(row: Row, work: Work, seen: set[str]) -> Row:
    """Return the row as it will be stored.

    Raises:
        Reject: its id is not new, or it breaks the data contract.
    """
    if row.image_id in seen:
        raise Reject("duplicate id", f"the split has {quoted(row.image_id)} already")
    checked = check_row(row, work.classes)
    return checked if work.max_side is None else shrink(checked, work.max_side)


def _encoded(row: Row) -> _Encoded:
    columns = {
        "image_id": row.image_id,
        "image": row.image,
        "height": row.height,
        "width": row.width,
        "has_det": row.has_det,
        "has_seg": row.has_seg,
        "boxes": row.boxes.tolist(),
        "labels": row.labels.tolist(),
        "difficult": row.difficult.tolist(),
        "mask": None if row.mask is None else encode_labels(row.mask),
        **{f"{task}_unlabelled": list(row.unlabelled.get(task, ())) or None for task in TASKS},
    }
    return _Encoded(row.kind, columns)


def _row_groups(rows: Iterator[_Encoded], layout: Layout) -> Iterator[list[_Encoded]]:
    """Group rows, by number and by bytes of images; in a group, rows of a kind lie together."""
    group: list[_Encoded] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.columns["image"])
        if len(group) == layout.group_rows or size >= layout.group_bytes:
            yield sorted(group, key=lambda row: row.kind)
            group, size = [], 0
    if group:
        yield sorted(group, key=lambda row: row.kind)


def _write_shard(file: StoragePath, groups: Iterator[list[_Encoded]]) -> None:
    """Write the row groups into a file; where there are none, an earlier attempt's file is deleted."""
    first = next(groups, None)
    if first is None:
        file.delete()
        return
    # Images and masks are compressed already, and nothing in them repeats.
    with file.writing() as stream, pq.ParquetWriter(stream, SCHEMA, compression="none", use_dictionary=False) as writer:
        kinds = []
        for group in itertools.chain([first], groups):
            writer.write_table(pa.Table.from_pylist([row.columns for row in group], schema=SCHEMA))
            kinds.append(runs(np.array([row.kind for row in group], np.uint8)))
        writer.add_key_value_metadata(to_metadata(kinds))
