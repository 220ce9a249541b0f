"""Index of a split: where each row is stored and which tasks it is annotated for. A plan needs nothing else."""

import hashlib
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow.parquet as pq

from multas_ray.config import Task
from multas_ray.data.schema import MAY_BE_MISSING, SCHEMA, TASK_MASKS, TaskMask, read_info
from multas_ray.errors import UserError, first_line
from multas_ray.parquet import Result, read_parquet
from multas_ray.storage import StoragePath


@dataclass(frozen=True)
class Index:
    """Rows of one split, in storage order."""

    path: str
    """Data set folder."""
    files: tuple[str, ...]
    """Paths of the Parquet files in the data set's filesystem."""
    file: np.ndarray
    """(N,) int32: index into `files`."""
    group: np.ndarray
    """(N,) int32: number of the row group in the file."""
    offset: np.ndarray
    """(N,) int32: number of the row in the row group."""
    task_mask: np.ndarray
    """(N,) uint8: has_det + 2 * has_seg."""
    digest: str = ""
    """SHA-256 of the data set's description and the files' footers, which hold every column's sizes and value
    ranges."""
    det_classes: tuple[str, ...] = ()
    """Names of the object classes."""
    seg_classes: tuple[str, ...] = ()
    """Names of the pixel classes."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.file)

    @property
    def classes(self) -> dict[Task, int]:
        """Number of classes of each task."""
        return {task: len(names) for task, names in self.names.items()}

    @property
    def names(self) -> dict[Task, tuple[str, ...]]:
        """Names of each task's classes."""
        return {"det": self.det_classes, "seg": self.seg_classes}

    def rows(self, masks: Collection[TaskMask]) -> np.ndarray:
        """Return the rows with one of these task masks: (n,) int64, in storage order."""
        wanted = [TASK_MASKS.index(mask) for mask in masks]
        return np.flatnonzero(np.isin(self.task_mask, wanted))

    def annotated(self, task: Task) -> np.ndarray:
        """(N,) bool: the rows that are annotated for a task."""
        return self.task_mask & TASK_MASKS.index(task) > 0

    def take(self, rows: Sequence[int]) -> "Index":
        """Return an index of these rows only, in this order."""
        columns = {name: getattr(self, name)[list(rows)] for name in ("file", "group", "offset", "task_mask")}
        return replace(self, **columns)

    def shard(self, row: int) -> StoragePath:
        """Return the Parquet file of a row."""
        root = StoragePath(self.path)
        return root / self.files[int(self.file[row])].removeprefix(f"{root.path}/")

    @cached_property
    def block(self) -> np.ndarray:
        """(N,) int64: number of the row's row group in the split."""
        change = (np.diff(self.file, prepend=-1) != 0) | (np.diff(self.group, prepend=-1) != 0)
        return np.cumsum(change) - 1


def read_index(path: str, split: str) -> Index:
    """Read the index of a split. Only the footers and the two task-mask columns of its Parquet files are read.

    Args:
        path: data set folder.
        split: name of the split.

    Raises:
        UserError: there is no such split, or one of its files cannot be read or has other columns.
    """
    info = read_info(path)
    if split not in info.splits:
        raise UserError(f"{path}: no split '{split}'; it has {', '.join(info.splits) or 'none'}")
    folder = StoragePath(path) / split
    files = [folder / name for name in folder.names() if name.endswith(".parquet")]
    if not files:
        raise UserError(f"{path}/{split}: no Parquet file in the split's folder")
    columns: list[tuple[np.ndarray, ...]] = []
    digest = hashlib.sha256(info.model_dump_json(exclude={"command", "source"}).encode())
    for number, file in enumerate(files):
        try:
            task_mask, sizes, footer = read_shard(file, _task_masks)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
        digest.update(footer)
        columns.append(
            (
                np.full(len(task_mask), number, np.int32),
                np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
                np.concatenate([np.arange(size, dtype=np.int32) for size in sizes] or [np.zeros(0, np.int32)]),
                task_mask,
            )
        )
    file_column, group, offset, task_mask = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Index(
        path=path,
        files=tuple(file.path for file in files),
        file=file_column,
        group=group,
        offset=offset,
        task_mask=task_mask,
        digest=digest.hexdigest(),
        det_classes=tuple(info.det_classes),
        seg_classes=tuple(info.seg_classes),
    )


def _task_masks(shard: pq.ParquetFile) -> tuple[np.ndarray, list[int], bytes]:
    """Read every row's task mask, the sizes of the row groups, and the footer.

    A null counts as no annotation; its row is rejected where it is read.
    """
    sizes = [shard.metadata.row_group(group).num_rows for group in range(shard.num_row_groups)]
    table = shard.read(columns=["has_det", "has_seg"])
    det, seg = (table[name].fill_null(False).to_numpy().astype(np.uint8) for name in ("has_det", "has_seg"))
    if sum(sizes) != len(det):
        raise ValueError(f"{len(det)} rows, but its footer says {sum(sizes)}")
    if "mask" not in shard.schema_arrow.names and seg.any():
        raise ValueError("no column 'mask', but rows whose has_seg is true")
    footer = io.BytesIO()
    shard.metadata.write_metadata_file(footer)
    return det + 2 * seg, sizes, footer.getvalue()


def read_shard(file: StoragePath, read: Callable[[pq.ParquetFile], Result], group: int | None = None) -> Result:
    """Read a Parquet file of a data set; see `read_parquet`.

    Args:
        file: the Parquet file.
        read: takes values out of the open file.
        group: number of the row group that is read; default: all.

    Returns:
        The result of `read`.

    Raises:
        UserError: the file is broken, or has other columns.
        OSError: there is no such file, or the storage fails.
    """
    try:
        return read_parquet(file, SCHEMA, read, optional=MAY_BE_MISSING, group=group)
    except UserError as error:
        raise UserError(f"{error}; write it anew (docs/data.md has the format), or take it away") from None
