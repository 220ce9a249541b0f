"""Index of a split: where each row is stored and which tasks it is annotated for. A plan needs nothing else.

Its memory grows with the number of row groups, and of runs of rows of one kind, not with the number of rows.
"""

import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from multas_ray.config import TASK_MASKS, Task, TaskMask
from multas_ray.data.classes import ClassMap
from multas_ray.data.footer import EVERY_KIND, HAS, UNLABELLED, Run, annotated, counted_runs, group_sizes, stated_runs
from multas_ray.data.row_sets import RowSet
from multas_ray.data.schema import MAY_BE_MISSING, SCHEMA, DatasetInfo, read_info
from multas_ray.errors import UserError, first_line
from multas_ray.parquet import Result, read_parquet
from multas_ray.storage import Location, StoragePath

READERS = 32
"""Number of files whose footers are read at a time: from a bucket, each is a wait of some tens of milliseconds."""


@dataclass(frozen=True)
class Origin:
    """A data set that rows of an index come from."""

    path: str
    """Its folder."""
    name: str = ""
    """Its name among the sources of a run; empty for the only one."""
    classes: Mapping[Task, int] = field(default_factory=dict)
    """Number of its own classes of each task."""
    maps: Mapping[Task, ClassMap] = field(default_factory=dict)
    """Its classes by those of the run; a task without a map has the run's."""
    digest: str = ""
    """SHA-256 of its description and its files' footers, which hold every column's sizes and value ranges."""


@dataclass(frozen=True, eq=False)
class Index:
    """N rows, in storage order: G blocks, the rows of one row group each, and R runs of rows of one kind.

    They are those of one split of a data set, or of splits of several, one after the other. Runs may extend over
    several blocks.
    """

    origins: tuple[Origin, ...]
    """Data sets of the rows."""
    files: tuple[str, ...]
    """Paths of the Parquet files in the folders of their data sets."""
    origin: np.ndarray
    """(files,) uint16: index into `origins` of each file."""
    file: np.ndarray
    """(G,) int32: index into `files` of each block."""
    group: np.ndarray
    """(G,) int32: number of the row group in the file."""
    offset: np.ndarray
    """(G,) int32: number of the block's first row in the row group."""
    block_starts: np.ndarray
    """(G + 1,) int64: first row of each block, and N."""
    run_starts: np.ndarray
    """(R + 1,) int64: first row of each run, and N."""
    kinds: np.ndarray
    """(R,) uint8: kind of each run's rows, see data/footer.py."""
    digest: str = ""
    """SHA-256 of all that the rows depend on: of the origins' digests and class maps."""
    det_classes: tuple[str, ...] = ()
    """Names of the object classes."""
    seg_classes: tuple[str, ...] = ()
    """Names of the pixel classes."""

    def __len__(self) -> int:
        """Return the number N of rows."""
        return int(self.block_starts[-1])

    @property
    def path(self) -> str:
        """Folders of the data sets, for people."""
        return ", ".join(origin.path for origin in self.origins)

    @property
    def classes(self) -> dict[Task, int]:
        """Number of classes of each task."""
        return {task: len(names) for task, names in self.names.items()}

    @property
    def names(self) -> dict[Task, tuple[str, ...]]:
        """Names of each task's classes."""
        return {"det": self.det_classes, "seg": self.seg_classes}

    def rows(self, masks: Collection[TaskMask], source: str | None = None) -> RowSet:
        """Return the rows with one of these task masks, of one source or of all."""
        chosen = self.rows_of(np.isin(_masks(EVERY_KIND), [TASK_MASKS.index(mask) for mask in masks]))
        if source is None:
            return chosen
        own = [number for number, origin in enumerate(self.origins) if origin.name == source]
        blocks = np.flatnonzero(np.isin(self.origin[self.file], own))
        return chosen.between(*self.block_starts[[blocks[0], blocks[-1] + 1]]) if len(blocks) else chosen.between(0, 0)

    def rows_of(self, chosen: np.ndarray) -> RowSet:
        """Return the rows of some kinds.

        Args:
            chosen: (K,) bool: whether the rows of each kind are chosen.
        """
        edges = np.flatnonzero(np.diff(chosen[self.kinds], prepend=False, append=False))
        starts, ends = self.run_starts[edges[::2]], self.run_starts[edges[1::2]]
        return RowSet(starts, np.concatenate([[0], np.cumsum(ends - starts)]))

    def kind(self, rows: np.ndarray) -> np.ndarray:
        """Return the kind of each of some rows (n,): (n,) uint8."""
        return self.kinds[np.searchsorted(self.run_starts, rows, side="right") - 1]

    def task_mask(self, rows: np.ndarray) -> np.ndarray:
        """Return the task mask of each of some rows (n,), as an index into `TASK_MASKS`: (n,) uint8."""
        return _masks(self.kind(rows))

    def block(self, rows: np.ndarray) -> np.ndarray:
        """Return the number, 0..G-1, of the block that each of some rows (n,) is in: (n,) int64."""
        return np.searchsorted(self.block_starts, rows, side="right") - 1

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find some rows (n,): file, row group and number in the row group of each, (n,) each."""
        block = self.block(rows)
        return self.file[block], self.group[block], self.offset[block] + (rows - self.block_starts[block])

    def take(self, rows: Sequence[int]) -> "Index":
        """Return an index of a few rows only, in this order: each is a block and a run of its own."""
        chosen = np.array(rows, np.int64)
        file, group, offset = self.locate(chosen)
        used, file = np.unique(file, return_inverse=True)
        starts = np.arange(len(chosen) + 1)
        return replace(
            self,
            files=tuple(self.files[number] for number in used.tolist()),
            origin=self.origin[used],
            file=file.astype(np.int32),
            group=group,
            offset=offset.astype(np.int32),
            block_starts=starts,
            run_starts=starts,
            kinds=self.kind(chosen),
        )

    def origin_of(self, row: int) -> Origin:
        """Return the data set of a row."""
        file, _, _ = self.locate(np.array(row))
        return self.origins[int(self.origin[int(file)])]

    def shard(self, row: int) -> StoragePath:
        """Return the Parquet file of a row."""
        file, _, _ = self.locate(np.array(row))
        return StoragePath(self.origin_of(row).path) / self.files[int(file)]


def _masks(kinds: np.ndarray) -> np.ndarray:
    """Return the task masks of kinds: the bits of annotation, which are the lowest ones."""
    return kinds & np.uint8(sum(HAS.values()))


def read_index(path: str, split: str) -> Index:
    """Read the index of a split: the footers of its Parquet files, some at a time.

    Of files whose footers do not state the kinds of their rows, the columns that tell them are read too.

    Args:
        path: data set folder.
        split: name of the split.

    Raises:
        UserError: there is no such split, or one of its files cannot be read or has other columns.
    """
    info = read_info(path)
    if split not in info.splits:
        raise UserError(f"{path}: no split '{split}'; it has {', '.join(info.splits) or 'none'}")
    names = shard_names(path, info, split)
    if not names:
        raise UserError(f"{path}/{split}: no Parquet file in the split's folder")
    sizes: list[np.ndarray] = []
    runs: list[np.ndarray] = []
    digest = hashlib.sha256(info.model_dump_json(exclude={"command", "source"}).encode())
    for shard in _read_ahead([StoragePath(path) / name for name in names]):
        sizes.append(np.array(shard.sizes, np.int64))
        runs.append(np.array(shard.runs, np.int64).reshape(-1, 2))
        digest.update(shard.footer)
    kinds, counts = np.concatenate(runs).T
    first = np.diff(kinds, prepend=-1) != 0
    every_size = np.concatenate(sizes)
    counts_of: dict[Task, int] = {task: len(of) for task, of in info.classes.items()}
    return Index(
        origins=(Origin(path, classes=counts_of, digest=digest.hexdigest()),),
        files=tuple(names),
        origin=np.zeros(len(names), np.uint16),
        # Row groups without rows are no blocks.
        file=np.repeat(np.arange(len(sizes), dtype=np.int32), [np.count_nonzero(each) for each in sizes]),
        group=np.concatenate([np.flatnonzero(each) for each in sizes]).astype(np.int32),
        offset=np.zeros(np.count_nonzero(every_size), np.int32),
        block_starts=_sums(every_size[every_size > 0]),
        run_starts=np.append(_sums(counts)[:-1][first], counts.sum()),
        kinds=kinds[first].astype(np.uint8),
        digest=digest.hexdigest(),
        det_classes=tuple(info.det_classes),
        seg_classes=tuple(info.seg_classes),
    )


def join_indexes(
    parts: Mapping[str, Index], maps: Mapping[str, Mapping[Task, ClassMap]], classes: Mapping[Task, Sequence[str]]
) -> Index:
    """Join indexes of several data sets, one after the other.

    Args:
        parts: index of each data set, by its name.
        maps: its classes by those of the run.
        classes: names of the run's classes.
    """
    origins, kinds, digest = [], [], hashlib.sha256()
    for name, index in parts.items():
        [origin] = index.origins
        origins.append(replace(origin, name=name, maps=maps[name]))
        kinds.append(_kinds_in_the_run(maps[name])[index.kinds])
        targets = {task: (each.targets, each.count) for task, each in maps[name].items()}
        digest.update(json.dumps([name, origin.digest, targets]).encode())
    indexes = list(parts.values())
    files = _sums(np.array([len(index.files) for index in indexes]))
    rows = _sums(np.array([len(index) for index in indexes]))
    numbered = list(enumerate(indexes))
    return Index(
        origins=tuple(origins),
        files=tuple(file for index in indexes for file in index.files),
        origin=np.repeat(np.arange(len(indexes), dtype=np.uint16), np.diff(files)),
        file=np.concatenate([index.file + np.int32(files[number]) for number, index in numbered]),
        group=np.concatenate([index.group for index in indexes]),
        offset=np.concatenate([index.offset for index in indexes]),
        block_starts=np.append(
            np.concatenate([index.block_starts[:-1] + rows[number] for number, index in numbered]), rows[-1]
        ),
        run_starts=np.append(
            np.concatenate([index.run_starts[:-1] + rows[number] for number, index in numbered]), rows[-1]
        ),
        kinds=np.concatenate(kinds),
        digest=digest.hexdigest(),
        det_classes=tuple(classes["det"]),
        seg_classes=tuple(classes["seg"]),
    )


def _kinds_in_the_run(maps: Mapping[Task, ClassMap]) -> np.ndarray:
    """Return the kind (K,) uint8 that a row of each kind of a data set is of in the run."""
    kinds = EVERY_KIND.copy()
    for task, each in maps.items():
        if each.empty:
            kinds &= np.uint8(255 - HAS[task] - UNLABELLED[task])
        elif each.unlabelled:
            kinds[annotated(kinds, task)] |= np.uint8(UNLABELLED[task])
    return kinds


def shard_names(path: Location, info: DatasetInfo, split: str) -> list[str]:
    """List the Parquet files of a split, in the order of its rows: their paths in the data set folder `path`."""
    folders = info.folders_of(split)
    names = {folder: (StoragePath(path) / folder).names() for folder in folders}
    return [f"{folder}/{name}" for folder in folders for name in names[folder] if name.endswith(".parquet")]


def _sums(counts: np.ndarray) -> np.ndarray:
    """Sum counts (n,) up: (n + 1,) int64, from 0 to the sum of all."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


class _Shard(NamedTuple):
    """What the index needs of a file."""

    sizes: list[int]
    """Number of rows of each row group."""
    runs: list[Run]
    """Runs of rows of one kind, those of one row group after those of the other."""
    footer: bytes


def _read_ahead(files: Sequence[StoragePath]) -> Iterator[_Shard]:
    """Read files side by side, and yield what is in them in their order.

    No more than twice READERS are read ahead: the footers of all files would take a lot of memory.

    Raises:
        UserError: a file cannot be read, or has other columns.
    """
    with ThreadPoolExecutor(READERS) as pool:
        pending: deque[Future[_Shard]] = deque()
        for file in files:
            pending.append(pool.submit(_read_file, file))
            if len(pending) == 2 * READERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _read_file(file: StoragePath) -> _Shard:
    try:
        return read_shard(file, _stated, groups=()) or read_shard(file, _counted)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None


def _stated(shard: pq.ParquetFile) -> _Shard | None:
    runs = stated_runs(shard)
    return None if runs is None else _checked(shard, runs)


def _counted(shard: pq.ParquetFile) -> _Shard:
    return _checked(shard, counted_runs(shard))


def _checked(shard: pq.ParquetFile, runs: list[Run]) -> _Shard:
    if "mask" not in shard.schema_arrow.names and any(kind & HAS["seg"] for kind, _ in runs):
        raise ValueError("no column 'mask', but rows whose has_seg is true")
    footer = io.BytesIO()
    shard.metadata.write_metadata_file(footer)
    return _Shard(group_sizes(shard), runs, footer.getvalue())


def read_shard(
    file: StoragePath, read: Callable[[pq.ParquetFile], Result], groups: Sequence[int] | None = None
) -> Result:
    """Read a Parquet file of a data set; see `read_parquet`.

    Args:
        file: the Parquet file.
        read: takes values out of the open file.
        groups: numbers of the row groups that are read, () for the footer alone; default: all.

    Returns:
        The result of `read`.

    Raises:
        UserError: the file is broken, or has other columns.
        OSError: there is no such file, or the storage fails.
    """
    try:
        return read_parquet(file, SCHEMA, read, optional=MAY_BE_MISSING, groups=groups)
    except UserError as error:
        raise UserError(f"{error}; write it anew (docs/data.md has the format), or take it away") from None
