"""Kinds of the rows of a Parquet file: stated in its footer, or else found in its columns.

A row's kind tells which tasks it is annotated for, and of which of them some classes are unlabelled in it. A writer
sorts the rows of a row group by kind and states the runs of equal kinds in the file's key-value metadata, so that an
index is read from the footers alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError

from multas_ray.config import TASKS, Task
from multas_ray.errors import quoted
from multas_ray.parquet import holds

KEY = b"multas_ray.kinds"
"""Key of the metadata: compact JSON, for each row group the list of its runs [kind, number of rows], in row order."""
HAS: Mapping[Task, int] = {task: 1 << place for place, task in enumerate(TASKS)}
"""Bit of a kind: the row is annotated for the task."""
UNLABELLED: Mapping[Task, int] = {task: 1 << place for place, task in enumerate(TASKS, start=len(TASKS))}
"""Bit of a kind: the row's column `<task>_unlabelled` is not empty."""
EVERY_KIND = np.arange(1 << 2 * len(TASKS), dtype=np.uint8)
"""(K,) uint8: all kinds there can be, in order; an array (K,) can be indexed with kinds."""

Kind = Annotated[int, Field(ge=0, lt=len(EVERY_KIND))]
Count = Annotated[int, Field(ge=1)]
Run = tuple[int, int]
"""Kind, and number of consecutive rows of this kind."""
STATED = TypeAdapter(list[list[tuple[Kind, Count]]])


def annotated(kinds: np.ndarray, task: Task) -> np.ndarray:
    """Return which of these kinds (n,) uint8 are annotated for a task: (n,) bool."""
    chosen: np.ndarray = kinds & HAS[task] > 0
    return chosen


def partly_annotated(kinds: np.ndarray, task: Task) -> np.ndarray:
    """Return which of these kinds (n,) uint8 are annotated for a task, with some classes unlabelled: (n,) bool."""
    return annotated(kinds, task) & (kinds & UNLABELLED[task] > 0)


def kinds_of(has: Mapping[Task, np.ndarray], unlabelled: Mapping[Task, np.ndarray]) -> np.ndarray:
    """Compute the kinds of rows.

    Args:
        has: (n,) bool for each task: the rows that are annotated for it.
        unlabelled: (n,) bool for some tasks: the rows whose column `<task>_unlabelled` is not empty.

    Returns:
        (n,) uint8.
    """
    bits = [HAS[task] * rows for task, rows in has.items()]
    bits += [UNLABELLED[task] * rows for task, rows in unlabelled.items()]
    kinds: np.ndarray = np.stack(bits).sum(axis=0, dtype=np.uint8)
    return kinds


def runs(kinds: np.ndarray) -> list[Run]:
    """Divide the kinds (n,) of consecutive rows into runs of equal kinds, as long as they can be."""
    bounds = np.append(np.flatnonzero(np.diff(kinds, prepend=len(EVERY_KIND))), len(kinds))
    return list(zip(kinds[bounds[:-1]].tolist(), np.diff(bounds).tolist(), strict=True))


def to_metadata(groups: Sequence[Sequence[Run]]) -> dict[bytes, bytes]:
    """Make the key-value metadata of a Parquet file from the runs of each of its row groups."""
    return {KEY: json.dumps(groups, separators=(",", ":")).encode()}


def stated_runs(shard: pq.ParquetFile) -> list[Run] | None:
    """Read the runs of a file's rows in its footer; None where it does not state them.

    Raises:
        ValueError: what it states is malformed, or contradicts the sizes of the row groups.
    """
    text = (shard.metadata.metadata or {}).get(KEY)
    if text is None:
        return None
    try:
        groups = STATED.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" for part in first["loc"])
        raise ValueError(
            f"'{KEY.decode()}'{place} in its footer: {first['msg']}, not {quoted(first['input'])}"
        ) from None
    stated = [sum(count for _, count in group) for group in groups]
    sizes = group_sizes(shard)
    if stated != sizes:
        shown = quoted(str(stated)), quoted(str(sizes))
        raise ValueError(f"'{KEY.decode()}' in its footer: row groups of {shown[0]} rows, but they are of {shown[1]}")
    return [run for group in groups for run in group]


def counted_runs(shard: pq.ParquetFile) -> list[Run]:
    """Find the runs of a file's rows in its columns.

    A null counts as no annotation; its row is rejected where it is read.

    Raises:
        ValueError: the row groups do not have the sizes that the footer says.
    """
    columns = {f"{task}_unlabelled": task for task in TASKS}
    marks = [
        field.name for field in shard.schema_arrow if field.name in columns and holds(field.type, pa.list_(pa.int32()))
    ]
    table = shard.read(columns=[*(f"has_{task}" for task in TASKS), *marks])
    sizes = group_sizes(shard)
    if sum(sizes) != len(table) or min(sizes, default=0) < 0:
        raise ValueError(f"{len(table)} rows, but its footer says {quoted(str(sizes))}")
    has = {task: table[f"has_{task}"].fill_null(False).to_numpy() for task in TASKS}
    lengths = {columns[name]: pc.list_value_length(table[name]).fill_null(0).to_numpy() for name in marks}
    return runs(kinds_of(has, {task: length > 0 for task, length in lengths.items()}))


def group_sizes(shard: pq.ParquetFile) -> list[int]:
    """Return the number of rows of each row group of a file, as its footer says."""
    return [shard.metadata.row_group(group).num_rows for group in range(shard.num_row_groups)]
