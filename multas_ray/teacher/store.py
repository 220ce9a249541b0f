"""Stored soft targets: what they are of, where they lie, and how a run reads them.

A store is a folder (local, or any URI that pyarrow writes) with `store.json` and, for each view and each row group of
the data set's split, `view=000/000012.parquet`: image_id, view, seed of the augmentation, digest of the pixels, and the
packed answers det and seg, null where a row needs none. A file is there whole or not at all.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from multas_ray.config import AugmentConfig, Config, DistilledOn, Task, select_rows
from multas_ray.data.index import Index
from multas_ray.data.plan import Replay
from multas_ray.data.transforms import VERSION as TRANSFORMS
from multas_ray.documents import read_model
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.parquet import read_parquet
from multas_ray.storage import StoragePath
from multas_ray.tasks.detection import packed as codec
from multas_ray.tasks.detection.anchors import count_anchors
from multas_ray.teacher.teacher import Rows, SoftTargets, TeacherSpec, joined

INFO = "store.json"
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("digest", pa.uint64(), nullable=False),
        pa.field("det", pa.binary()),
        pa.field("seg", pa.binary()),
    ]
)


class StoredTeacher(BaseModel):
    """The answers of one teacher."""

    model_config = ConfigDict(extra="forbid")

    digest: str
    """Of its weights."""
    classes: list[str]
    precision: str
    on: DistilledOn
    """Rows that have its answer."""


class StoreInfo(BaseModel):
    """`store.json`: all that decides the content, but the number of views."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    """Digest of the data set's split."""
    split: str
    size: int = Field(ge=32, le=2**15)
    """Side of the images in pixels."""
    augment: AugmentConfig
    transforms: int
    """Version of the augmentation."""
    codec: str
    seed: int = Field(ge=0, lt=2**64)
    """From which the augmentations' seeds are derived."""
    views: int = Field(ge=1, le=100_000)
    """Of each row."""
    teachers: dict[Task, StoredTeacher]

    def replay(self) -> Replay:
        """The augmentations that a run must take."""
        return Replay(self.seed, self.views)

    def shapes(self) -> dict[Task, set[tuple[int, ...]]]:
        """Those that an answer of each teacher may have: (A, C) of detection, (C, h, w) of segmentation."""
        found: dict[Task, set[tuple[int, ...]]] = {}
        for task, teacher in self.teachers.items():
            classes = len(teacher.classes)
            if task == "det":
                found[task] = {(count_anchors(self.size, levels), classes) for levels in (4, 5)}
            else:
                found[task] = {(classes, self.size // 4, self.size // 4)}
        return found


def describe_store(config: Config, specs: Mapping[Task, TeacherSpec], index: Index, views: int) -> StoreInfo:
    """What a store of this configuration's soft targets is of."""
    return StoreInfo(
        dataset=index.digest,
        split=config.data.train,
        size=config.data.eval_size,
        augment=config.data.augment,
        transforms=TRANSFORMS,
        codec=codec.NAME,
        seed=config.train.seed,
        views=views,
        teachers={
            task: StoredTeacher(
                digest=spec.digest,
                classes=list(spec.classes),
                precision=spec.precision,
                on=getattr(config.distill, task).on,
            )
            for task, spec in specs.items()
        },
    )


def read_store_info(path: str) -> StoreInfo | None:
    """`store.json` of a store, None if there is none yet.

    Raises:
        UserError: it is not of a store that this version reads.
    """
    file = StoragePath(path) / INFO
    try:
        return read_model(file, StoreInfo) if file.exists() else None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
    except UserError as error:
        raise UserError(f"{error}; delete the store and run jobs/precompute.py again") from None


def _existing(path: str) -> StoreInfo:
    found = read_store_info(path)
    if found is None:
        raise UserError(f"teachers.store {path}: no store here ({INFO} is missing); fill one with jobs/precompute.py")
    return found


def write_store_info(path: str, info: StoreInfo) -> None:
    """Write `store.json`."""
    (StoragePath(path) / INFO).write_text(info.model_dump_json(indent=1))


def check_store(path: str, wanted: StoreInfo) -> StoreInfo:
    """A store's description, if a run's targets can come from it; seed and views are the store's.

    Raises:
        UserError: there is no store, or it was made of something else.
    """
    found = _existing(path)
    for name, value, expected in _facts(found, wanted):
        if name.endswith(".on") and value == "all":
            continue
        if value != expected:
            raise UserError(f"teachers.store {path}: made with {name} {value}, but this run has {expected}")
    return found


def _facts(found: StoreInfo, wanted: StoreInfo) -> list[tuple[str, Any, Any]]:
    """Name, value found and value wanted of all that must agree."""
    facts = [
        ("data.path", found.dataset, wanted.dataset),
        ("data.train", found.split, wanted.split),
        ("data.size", found.size, wanted.size),
        ("data.augment", found.augment.model_dump(), wanted.augment.model_dump()),
        ("transform version", found.transforms, wanted.transforms),
        ("codec", found.codec, wanted.codec),
    ]
    for task, teacher in wanted.teachers.items():
        stored = found.teachers.get(task)
        facts.append((f"teachers.{task}", "absent" if stored is None else "present", "present"))
        if stored is not None:
            facts += [
                (f"teachers.{task}.checkpoint of digest", stored.digest, teacher.digest),
                (f"teachers.{task} classes", stored.classes, teacher.classes),
                (f"teachers.{task} train.precision", stored.precision, teacher.precision),
                (f"distill.{task}.on", stored.on, teacher.on),
            ]
    return facts


def needs(index: Index, info: StoreInfo) -> dict[Task, np.ndarray]:
    """(N,) bool of each teacher: rows of the split that have its answer."""
    has = {"det": index.task_mask & 1 > 0, "seg": index.task_mask & 2 > 0}
    return {task: select_rows(teacher.on, has[task]) for task, teacher in info.teachers.items()}


def missing_files(path: str, index: Index, info: StoreInfo) -> list[tuple[int, int]]:
    """View and row group of every file that is not there yet, view after view."""
    needed = np.logical_or.reduce(list(needs(index, info).values()))
    blocks = np.unique(index.block[needed]).tolist()
    there = {v: set((StoragePath(path) / f"view={v:03d}").names()) for v in range(info.views)}
    return [(v, b) for v in range(info.views) for b in blocks if f"{b:06d}.parquet" not in there[v]]


def file_of(path: str, view: int, block: int) -> StoragePath:
    """Where the answers for a row group in a view lie."""
    return StoragePath(path) / f"view={view:03d}" / f"{block:06d}.parquet"


def write_file(path: str, view: int, block: int, table: pa.Table) -> int:
    """Write the answers for a row group in a view; their size in bytes."""
    sink = pa.BufferOutputStream()
    # The answers are compressed already.
    pq.write_table(table, sink, compression="none", write_page_checksum=True)
    data = sink.getvalue()
    file_of(path, view, block).write_bytes(data)
    return data.size


class StoreReader:
    """Adds stored soft targets to the batches of a stream, for the rows that are distilled."""

    def __init__(self, path: str, index: Index, rows_of: Callable[[dict[str, np.ndarray]], Rows]) -> None:
        """Read what the store is of.

        Args:
            path: of a store that `check_store` has found to fit.
            index: of the split.
            rows_of: the rows of a batch that each task is distilled on.

        Raises:
            UserError: there is no store.
        """
        self.path = path
        self.index = index
        self.rows_of = rows_of
        self.shapes = _existing(path).shapes()

    def __call__(self, batch: dict[str, np.ndarray]) -> SoftTargets:
        """See `SoftTargets`: packed, of the rows that `rows_of` names.

        Raises:
            UserError: a file of the store is gone or broken, or lacks a row.
        """
        targets: SoftTargets = {}
        for task, rows in self.rows_of(batch).items():
            found = [self._find(task, batch, int(row)) for row in rows]
            targets[f"{task}.digest"] = np.array([digest for digest, _ in found], np.uint64)
            targets |= joined(task, [packed for _, packed in found])
        return targets

    def _find(self, task: Task, batch: dict[str, np.ndarray], row: int) -> tuple[int, bytes]:
        view, block = int(batch["views"][row]), int(self.index.block[batch["rows"][row]])
        image_id = batch["ids"][row].decode()
        answers, places = _read_file(self.path, view, block)
        place = places.get(image_id)
        packed = None if place is None else answers[task][place].as_py()
        try:
            if packed is None:
                raise ValueError("is not there")
            codec.check_packed(task, packed, self.shapes[task])
        except ValueError as error:
            file = file_of(self.path, view, block)
            raise UserError(f"{file}: the {task} target of image {quoted(image_id)}: {error}; {AGAIN}") from None
        return answers["digest"][place].as_py(), packed


AGAIN = "delete the file and run jobs/precompute.py again"


@lru_cache(maxsize=32)
def _read_file(path: str, view: int, block: int) -> tuple[pa.Table, dict[str, int]]:
    """The answers for a row group in a view, and the place of each image. Kept, as the row groups of a data set are."""
    try:
        table = read_parquet(file_of(path, view, block), SCHEMA, _answers)
    except FileNotFoundError:
        raise UserError(f"{file_of(path, view, block)}: is gone; run jobs/precompute.py again") from None
    except UserError as error:
        raise UserError(f"{error}; {AGAIN}") from None
    return table, {image_id: place for place, image_id in enumerate(table["image_id"].to_pylist())}


def _answers(file: pq.ParquetFile) -> pa.Table:
    # Refuses nulls where there may be none.
    table = file.read(columns=SCHEMA.names).select(SCHEMA.names).cast(SCHEMA)
    table.validate(full=True)
    return table
