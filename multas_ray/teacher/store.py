"""Store of soft targets: its description, its files, and its reader in the training stream.

A store is a folder (local, or any URI that pyarrow writes) with `store.json` and, for each view and each row group of
the data set's split, `view=000/000012.parquet`: image_id, view, seed of the augmentation, digest of the pixels, and the
packed answers det and seg, null where a row needs none. A file is whole or missing.

The view of the original images is in `original/000012.parquet`, with the number -1 and the digest of the image's file.
Its answers do not depend on augmentation or size: they are moved with the image when it is augmented.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from multas_ray.config import AugmentConfig, Config, DistilledOn, Task
from multas_ray.data.batch import TrainBatch
from multas_ray.data.footer import EVERY_KIND, annotated, partly_annotated
from multas_ray.data.index import Index
from multas_ray.data.plan import Replay
from multas_ray.data.read import read_row
from multas_ray.data.transforms import VERSION as TRANSFORMS
from multas_ray.documents import read_model
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.parquet import read_parquet
from multas_ray.storage import StoragePath
from multas_ray.tasks import PARTS
from multas_ray.tasks.detection.distillation import SEEN
from multas_ray.tasks.packed import LEVEL
from multas_ray.tasks.segmentation.packed import BLOCK, STEP
from multas_ray.tasks.segmentation.rows import BACKGROUND
from multas_ray.teacher.ensemble import TaskTeacher
from multas_ray.teacher.selection import rows_to_distil
from multas_ray.teacher.teacher import Answer, digests

INFO = "store.json"
CODEC = f"zstd {LEVEL}, seen {SEEN}, block {BLOCK}, step {STEP}"
"""Parameters of the packing."""
ORIGINAL = -1
"""Number of the view of the original images."""
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
    """Teacher whose answers a store holds."""

    model_config = ConfigDict(extra="forbid")

    digest: str
    """Digest of its weights."""
    classes: list[str]
    precision: str
    on: DistilledOn
    """Rows that have its answer."""


class StoreInfo(BaseModel):
    """Content of `store.json`: everything that the stored answers depend on, and the number of views."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    """Digest of the data set's split."""
    split: str
    size: int | None = Field(ge=32, le=2**15)
    """Side of the images in pixels; None for original images."""
    augment: AugmentConfig | None
    transforms: int | None
    """Version of the augmentation."""
    codec: str
    seed: int = Field(ge=0, lt=2**64)
    """Seed from which the augmentations' seeds are derived."""
    views: int = Field(ge=1, le=100_000)
    """Number of stored augmentations of each row; 1 where it is that of the original images."""
    original: bool = False
    """Whether the answers are for original images."""
    teachers: dict[Task, StoredTeacher]

    @property
    def numbers(self) -> list[int]:
        """Numbers of the views."""
        return [ORIGINAL] if self.original else list(range(self.views))

    def replay(self) -> Replay | None:
        """Return the augmentations that a run must use; None for any."""
        return None if self.original else Replay(self.seed, self.views)


Views = int | Literal["original"]
"""Number of augmentations of each row, or `original` images."""


def describe_store(config: Config, specs: Mapping[Task, TaskTeacher], index: Index, views: Views) -> StoreInfo:
    """Describe the store that a configuration needs; `check_store` compares it with store.json field by field.

    Args:
        config: configuration of the run.
        specs: teacher of each distilled task.
        index: index of the training split.
        views: number of augmentations of each row, or `original` images.

    Raises:
        UserError: augmentations are of one size, and the run has several.
    """
    original = views == "original"
    if not original and len(config.data.sizes) > 1:
        raise UserError(
            f"data.size: {config.data.size}, but soft targets of augmented images are of one size; jobs/precompute.py "
            "--views original makes some for all"
        )
    return StoreInfo(
        dataset=index.digest,
        split=config.data.train,
        size=None if original else config.data.eval_size,
        augment=None if original else config.data.augment,
        transforms=None if original else TRANSFORMS,
        codec=CODEC,
        seed=0 if original else config.train.seed,
        views=1 if views == "original" else views,
        original=original,
        teachers={
            task: StoredTeacher(
                digest=spec.digest,
                classes=list(spec.terms.classes),
                precision=spec.terms.precision,
                on=config.distill.of(task).on,
            )
            for task, spec in specs.items()
        },
    )


def read_store_info(path: str) -> StoreInfo | None:
    """Read `store.json`; None if the folder has none yet.

    Raises:
        UserError: it is broken, or of a version that cannot be read.
    """
    file = StoragePath(path) / INFO
    try:
        return read_model(file, StoreInfo) if file.exists() else None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
    except UserError as error:
        raise UserError(f"{error}; delete the store and run jobs/precompute.py again") from None


def _existing(path: str) -> StoreInfo:
    info = read_store_info(path)
    if info is None:
        raise UserError(f"teachers.store {path}: no store here ({INFO} is missing); fill one with jobs/precompute.py")
    return info


def write_store_info(path: str, info: StoreInfo) -> None:
    """Write `store.json`."""
    (StoragePath(path) / INFO).write_text(info.model_dump_json(indent=1))


def stored_views(path: str) -> Views:
    """Read what a store holds: one view for the run to ask about, or `original` images.

    Raises:
        UserError: there is no store.
    """
    return "original" if _existing(path).original else 1


def check_store(path: str, wanted: StoreInfo) -> StoreInfo:
    """Check that a run can take its targets from a store.

    Args:
        path: folder of the store.
        wanted: description of the store that the run needs. Its seed and views do not count.

    Returns:
        Description of the store.

    Raises:
        UserError: there is no store, or it was made of something else.
    """
    info = _existing(path)
    for name, value, expected in _facts(info, wanted):
        if name.endswith(".on") and value == "all":
            continue
        if value != expected:
            raise UserError(f"teachers.store {path}: made with {name} {value}, but this run has {expected}")
    return info


def _facts(info: StoreInfo, wanted: StoreInfo) -> list[tuple[str, Any, Any]]:
    """List everything that must agree: name, value in the store, value that is wanted."""
    facts: list[tuple[str, Any, Any]] = [
        ("original images", info.original, wanted.original),
        ("data.path", info.dataset, wanted.dataset),
        ("data.train", info.split, wanted.split),
        ("data.size", info.size, wanted.size),
        ("data.augment", info.augment and info.augment.model_dump(), wanted.augment and wanted.augment.model_dump()),
        ("transform version", info.transforms, wanted.transforms),
        ("codec", info.codec, wanted.codec),
    ]
    for task, teacher in wanted.teachers.items():
        stored = info.teachers.get(task)
        facts.append((f"teachers.{task}", "absent" if stored is None else "present", "present"))
        if stored is not None:
            facts += [
                (f"teachers.{task}.source of digest", stored.digest, teacher.digest),
                (f"teachers.{task} classes", stored.classes, teacher.classes),
                (f"teachers.{task} train.precision", stored.precision, teacher.precision),
                (f"distill.{task}.on", stored.on, teacher.on),
            ]
    return facts


def needs(info: StoreInfo) -> dict[Task, np.ndarray]:
    """Select for each teacher the kinds of the rows that have its answer: (K,) bool, see `data.footer`."""
    selected = {}
    for task, teacher in info.teachers.items():
        in_part = partly_annotated(EVERY_KIND, task) & PARTS[task].rows.hides(teacher.classes)
        selected[task] = rows_to_distil(teacher.on, annotated(EVERY_KIND, task), in_part)
    return selected


def missing_files(path: str, index: Index, info: StoreInfo) -> list[tuple[int, int]]:
    """List view and row group of every missing file, view after view."""
    needed = index.rows_of(np.logical_or.reduce(list(needs(info).values())))
    blocks = np.flatnonzero(np.diff(needed.below(index.block_starts))).tolist()
    written = {view: set(_folder(path, view).names()) for view in info.numbers}
    return [(view, b) for view in info.numbers for b in blocks if f"{b:06d}.parquet" not in written[view]]


def file_of(path: str, view: int, block: int) -> StoragePath:
    """Return the file of the answers for a row group in a view."""
    return _folder(path, view) / f"{block:06d}.parquet"


def _folder(path: str, view: int) -> StoragePath:
    return StoragePath(path) / ("original" if view == ORIGINAL else f"view={view:03d}")


def write_file(path: str, view: int, block: int, table: pa.Table) -> int:
    """Write the answers for a row group in a view.

    Returns:
        Size of the file in bytes.
    """
    sink = pa.BufferOutputStream()
    # The answers are compressed already.
    pq.write_table(table, sink, compression="none", write_page_checksum=True)
    data = sink.getvalue()
    file_of(path, view, block).write_bytes(data)
    return int(data.size)


class StoreReader:
    """Addition to the training stream: stored soft targets for the rows that are distilled."""

    def __init__(self, path: str, index: Index) -> None:
        """Read the store's description.

        Args:
            path: folder of a store that has passed `check_store`.
            index: index of the training split.

        Raises:
            UserError: there is no store.
        """
        self.path = path
        self.index = index
        self.info = _existing(path)

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        """Return the batch with `soft`.

        Raises:
            UserError: a file of the store is missing or broken, or lacks a row.
        """
        answer = self._moved if self.info.original else self._stored
        return replace(batch, soft={task: answer(task, batch, chosen.rows) for task, chosen in batch.distil.items()})

    def _stored(self, task: Task, batch: TrainBatch, rows: np.ndarray) -> Answer:
        """Return the answers for augmented images."""

        def check(packed: bytes) -> None:
            assert self.info.size is not None
            PARTS[task].network.check_packed(packed, len(self.info.teachers[task].classes), self.info.size)

        found = [self._find(task, batch, int(row), int(batch.part.views[row]), check) for row in rows]
        return Answer(np.array([digest for digest, _ in found], np.uint64), packed=tuple(packed for _, packed in found))

    def _moved(self, task: Task, batch: TrainBatch, rows: np.ndarray) -> Answer:
        """Return the answers for original images, moved with their augmentation."""
        original, names = PARTS[task].original, self.info.teachers[task].classes
        size, background = batch.images.shape[-1], names[0] == BACKGROUND
        moved = []
        for row in rows.tolist():
            digest, packed = self._find(task, batch, row, ORIGINAL, partial(original.check, classes=len(names)))
            if digest != file_digest(read_row(self.index, int(batch.part.rows[row]))["image"]):
                raise UserError(
                    f"{self._file(batch, row, ORIGINAL)}: image {quoted(batch.ids[row])} is another; {AGAIN}"
                )
            moved.append(original.follow(packed, batch.geometry[row], size, background))
        general = original.stack(moved) if moved else None
        return Answer(digests(batch.images[rows]), general=general)

    def _file(self, batch: TrainBatch, row: int, view: int) -> StoragePath:
        return file_of(self.path, view, int(self.index.block(batch.part.rows[row])))

    def _find(
        self, task: Task, batch: TrainBatch, row: int, view: int, check: Callable[[bytes], None]
    ) -> tuple[int, bytes]:
        """Return the stored digest of a row's image, and its packed answer, after its check."""
        image_id = batch.ids[row]
        answers, places = _read_file(self.path, view, int(self.index.block(batch.part.rows[row])))
        place = places.get(image_id)
        packed = None if place is None else answers[task][place].as_py()
        try:
            if packed is None:
                raise ValueError("is not there")
            check(packed)
        except ValueError as error:
            file = self._file(batch, row, view)
            raise UserError(f"{file}: the {task} target of image {quoted(image_id)}: {error}; {AGAIN}") from None
        return answers["digest"][place].as_py(), packed


def file_digest(data: bytes) -> int:
    """Compute the digest of an image's file: uint64."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


AGAIN = "delete the file and run jobs/precompute.py again"
"""Advice on a file that cannot be used."""


@lru_cache(maxsize=32)
def _read_file(path: str, view: int, block: int) -> tuple[pa.Table, dict[str, int]]:
    """Read the answers for a row group in a view, and the row of each image. Cached, as a data set's row groups are."""
    try:
        table = read_parquet(file_of(path, view, block), SCHEMA, _answers)
    except FileNotFoundError:
        raise UserError(f"{file_of(path, view, block)}: is gone; run jobs/precompute.py again") from None
    except UserError as error:
        raise UserError(f"{error}; {AGAIN}") from None
    return table, {image_id: place for place, image_id in enumerate(table["image_id"].to_pylist())}


def _answers(file: pq.ParquetFile) -> pa.Table:
    # `validate` refuses nulls in columns that may have none.
    table = file.read(columns=SCHEMA.names).select(SCHEMA.names).cast(SCHEMA)
    table.validate(full=True)
    return table
