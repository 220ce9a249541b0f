"""Where each row of a split lies and what it is annotated for: all that a plan needs to know of a data set."""

import hashlib
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow.parquet as pq

from multas_ray.data.schema import TASK_MASKS, TaskMask, read_info
from multas_ray.errors import UserError
from multas_ray.storage import StoragePath


@dataclass(frozen=True)
class Index:
    """The rows of one split, in storage order."""

    path: str
    """Data set folder."""
    files: tuple[str, ...]
    """Parquet files, inside the data set's filesystem."""
    file: np.ndarray
    """(N,) int32: index into `files`."""
    group: np.ndarray
    """(N,) int32: row group of the file."""
    offset: np.ndarray
    """(N,) int32: row of the row group."""
    task_mask: np.ndarray
    """(N,) uint8: has_det + 2 * has_seg."""
    digest: str = ""
    """Of the data set's description and the files' footers, which hold every column's sizes and value ranges."""

    def __len__(self) -> int:
        return len(self.file)

    def rows(self, masks: Collection[TaskMask]) -> np.ndarray:
        """(n,) int64: the rows whose task mask is one of these, in storage order."""
        wanted = [TASK_MASKS.index(mask) for mask in masks]
        return np.flatnonzero(np.isin(self.task_mask, wanted))

    def take(self, rows: Sequence[int]) -> "Index":
        """An index of these rows alone, in this order."""
        columns = {name: getattr(self, name)[list(rows)] for name in ("file", "group", "offset", "task_mask")}
        return replace(self, **columns)

    @cached_property
    def block(self) -> np.ndarray:
        """(N,) int64: number of the row's row group among those of the split."""
        change = (np.diff(self.file, prepend=-1) != 0) | (np.diff(self.group, prepend=-1) != 0)
        return np.cumsum(change) - 1


def read_index(path: str, split: str) -> Index:
    """Read the index of a split; of the Parquet files, only the footers and the two task-mask columns.

    Raises:
        UserError: there is no such split, or a file of it cannot be read.
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
            with file.open() as source, pq.ParquetFile(source) as parquet:
                sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
                table = parquet.read(columns=["has_det", "has_seg"])
                footer = io.BytesIO()
                parquet.metadata.write_metadata_file(footer)
                digest.update(footer.getvalue())
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{file}: not a readable Parquet shard ({str(error).splitlines()[0]})") from None
        det, seg = (table[name].to_numpy().astype(np.uint8) for name in ("has_det", "has_seg"))
        columns.append(
            (
                np.full(len(det), number, np.int32),
                np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
                np.concatenate([np.arange(size, dtype=np.int32) for size in sizes] or [np.zeros(0, np.int32)]),
                det + 2 * seg,
            )
        )
    file_column, group, offset, task_mask = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Index(path, tuple(file.path for file in files), file_column, group, offset, task_mask, digest.hexdigest())
