"""Job that fills a store of soft targets: some augmentations of each training row that is distilled."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import ray

from multas_ray.config import TASKS, Config, Task
from multas_ray.config_file import parse_config
from multas_ray.data.batch import Compared, Some, TrainBatch
from multas_ray.data.index import Index
from multas_ray.data.packing import pack, unpack
from multas_ray.data.plan import Part, mix
from multas_ray.data.sources import read_sources
from multas_ray.errors import UserError
from multas_ray.placement import Ask, check_placement
from multas_ray.ray_internals import set_data_context
from multas_ray.ray_setup import data_tasks, start_ray
from multas_ray.resolve import resolve_precision
from multas_ray.teacher.specs import require_teacher_specs
from multas_ray.teacher.store import (
    SCHEMA,
    StoreInfo,
    check_store,
    describe_store,
    missing_files,
    needs,
    read_store_info,
    write_file,
    write_store_info,
)
from multas_ray.teacher.teacher import TeacherSpec, digests

BATCH = 32
"""Number of images that a teacher answers at a time."""

Progress = Callable[[int, int], None]
"""Function that is called with the number of written files, and of all files to write."""


class Precomputed(TypedDict):
    """Summary of a job that filled a store."""

    files: int
    """Number of files that the job wrote."""
    images: int
    """Number of images in these files."""
    views: int
    """Number of augmentations of each row in the whole store."""
    kb_per_image: float
    """Mean size of an image's answers in kB."""
    seconds: float


def precompute(config: Config, views: int, progress: Progress = lambda done, total: None) -> Precomputed:
    """Write the missing files of `config.teachers.store`.

    Args:
        config: configuration of the run that is to train with the store, with any placement.
        views: number of augmentations of each row. A store that has fewer is added to.
        progress: called after every file.

    Raises:
        UserError: configuration, data or teachers cannot be used, or the store was made of something else.
    """
    tree = config.model_dump(mode="json")
    config = parse_config(tree | {"teachers": tree["teachers"] | {"placement": "stored"}}).absolute()
    config = resolve_precision(config)
    path = config.teachers.store
    assert path is not None
    sources = read_sources(config.data)
    specs = require_teacher_specs(config, sources.info)
    index = sources.index("train")
    info = describe_store(config, specs, index, views)
    if read_store_info(path) is not None:
        before = check_store(path, info)
        if before.teachers.keys() != info.teachers.keys():
            tasks = ", ".join(sorted(before.teachers))
            raise UserError(f"teachers.store {path}: holds the teachers' answers of {tasks}; name just these")
        stored = {"seed": before.seed, "views": max(before.views, views), "teachers": before.teachers}
        info = info.model_copy(update=stored)
    todo = missing_files(path, index, info)
    write_store_info(path, info)

    began = perf_counter()
    written = images = size = 0
    progress(0, len(todo))
    if todo:
        start_ray(math.ceil(config.teachers.replicas * config.teachers.resources.cpu) + 2)
        teachers = Ask("teachers.resources", 1, config.teachers.resources)
        check_placement([teachers, Ask("data.resources", 1, config.data.resources)])
        for row in _job(config, index, info, specs, todo).iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            written, images, size = written + 1, images + row["images"], size + row["bytes"]
            progress(written, len(todo))
    seconds = perf_counter() - began
    kb = size / max(1, images) / 1000
    return {"files": written, "images": images, "views": info.views, "kb_per_image": kb, "seconds": seconds}


def _job(
    config: Config, index: Index, info: StoreInfo, specs: Mapping[Task, TeacherSpec], todo: Sequence[tuple[int, int]]
) -> ray.data.Dataset:
    """Lay out the job; its result has a row for each file: images, bytes, and the `UserError` that stopped it or ""."""
    set_data_context()
    # The logger prints the execution plan of every job.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    teachers = config.teachers
    assert teachers.store is not None
    make = partial(make_views, todo=todo, index=index, wanted=needs(info), info=info)
    return (
        ray.data.from_items([{"id": number} for number in range(len(todo))], override_num_blocks=len(todo))
        .map_batches(
            make,
            batch_size=None,
            zero_copy_batch=True,
            **config.data.resources.options(),
            compute=ray.data.TaskPoolStrategy(size=config.data.workers or data_tasks()),
        )
        .map_batches(
            Writer,
            fn_constructor_args=(specs, teachers.threads, teachers.store),
            batch_size=1,
            batch_format="pyarrow",
            **teachers.resources.options(),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=teachers.replicas),
        )
    )


def make_views(
    chunk: dict[str, np.ndarray],
    *,
    todo: Sequence[tuple[int, int]],
    index: Index,
    wanted: Mapping[Task, np.ndarray],
    info: StoreInfo,
) -> Any:
    """Make the images of some files: the rows that need a target, augmented as the training will augment them.

    Args:
        chunk: `id`, numbers of files in `todo`.
        todo: view and row group of each file.
        index: index of the training split.
        wanted: (K,) bool for each task: kinds of the rows that need its teacher's answer.
        info: description of the store.

    Yields:
        View, row group and `TrainBatch` of a file, packed.
    """
    # Imported here, see `make_chunk`.
    import torch

    from multas_ray.data.collate import make_train_batch

    torch.set_num_threads(1)
    for number in chunk["id"]:
        view, block = todo[number]
        rows = np.arange(*index.block_starts[block : block + 2])
        rows = rows[np.logical_or.reduce(list(wanted.values()))[index.kind(rows)]]
        views = np.full_like(rows, view)
        seeds = mix(info.seed, views, rows)
        batch = make_train_batch(index, Part(0, 0, info.size, rows, views, views, seeds), info.augment)
        kinds, distil = index.kind(batch.part.rows), {}
        for task, of_kind in wanted.items():
            chosen = np.flatnonzero(of_kind[kinds])
            # A stored answer is whole: what of it is used is decided where a batch is made.
            marks = np.ones((len(chosen), index.classes[task]), bool)
            distil[task] = Some(chosen, Compared(marks, ~marks))
        yield pack([(view, block, replace(batch, distil=distil, truth={}, unlabelled={}))])


class Writer:
    """Actor of the job: holds the teachers, and writes their answers."""

    def __init__(self, specs: Mapping[Task, TeacherSpec], threads: int, path: str) -> None:
        """Load the teachers.

        Args:
            specs: teacher of each distilled task.
            threads: number of CPU threads.
            path: folder of the store.
        """
        import torch

        torch.set_num_threads(threads)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.teachers = {task: spec.load(device) for task, spec in specs.items()}
        self.path = path

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write the file of one packed batch of `make_views`; return its row of the job's result."""
        try:
            [(view, block, batch)] = unpack(table)
            size = self._write(view, block, batch)
        except UserError as error:
            # Raised here, it would reach the job as an error of Ray Data, without its own type.
            return pa.table({"images": [0], "bytes": [0], "error": [str(error)]})
        return pa.table({"images": [len(batch.images)], "bytes": [size], "error": [""]})

    def _write(self, view: int, block: int, batch: TrainBatch) -> int:
        """Write the file of a batch, and return its size in bytes."""
        images = batch.images
        columns: dict[str, list[Any]] = {task: [None] * len(images) for task in TASKS}
        for task, teacher in self.teachers.items():
            rows = batch.distil[task].rows
            for start in range(0, len(rows), BATCH):
                chosen = rows[start : start + BATCH]
                for row, packed in zip(chosen, teacher(images[chosen]).packed or (), strict=True):
                    columns[task][row] = packed
        columns |= {
            "image_id": list(batch.ids),
            "view": [view] * len(images),
            "seed": batch.part.seeds.tolist(),
            "digest": digests(images).tolist(),
        }
        return write_file(self.path, view, block, pa.table(columns, schema=SCHEMA))
