"""Fill a store of soft targets: a Ray Data job over the training rows that are distilled, some augmentations each."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from multas_ray.config import TASKS, Config, Task
from multas_ray.config_file import parse_config
from multas_ray.data.batch import TrainBatch
from multas_ray.data.index import Index, read_index
from multas_ray.data.packing import pack, unpack
from multas_ray.data.plan import Part, mix
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
"""Images that a teacher answers at a time."""

Progress = Callable[[int, int], None]
"""Called with the number of files that are written, and of all."""


def precompute(config: Config, views: int, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Fill `config.teachers.store`, or what is missing of it.

    Args:
        config: of the run that is to train with the store, with any placement.
        views: augmentations of each row. A store that has fewer is added to.
        progress: told of every file.

    Returns:
        files (written now), images (answered for), views (of the store), kb_per_image, seconds.

    Raises:
        UserError: configuration, data or teachers cannot be used, or the store was made of something else.
    """
    tree = config.model_dump(mode="json")
    config = parse_config(tree | {"teachers": tree["teachers"] | {"placement": "stored"}}).absolute()
    config = resolve_precision(config)
    path = config.teachers.store
    assert path is not None
    specs = require_teacher_specs(config)
    index = read_index(config.data.path, config.data.train)
    info = describe_store(config, specs, index, views)
    if read_store_info(path) is not None:
        before = check_store(path, info)
        if before.teachers.keys() != info.teachers.keys():
            tasks = ", ".join(sorted(before.teachers))
            raise UserError(f"teachers.store {path}: holds the teachers' answers of {tasks}; name just these")
        kept = {"seed": before.seed, "views": max(before.views, views), "teachers": before.teachers}
        info = info.model_copy(update=kept)
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
    """One row for each file: images, bytes, and the `UserError` that kept it from being written, if any."""
    set_data_context()
    # Prints every job's plan.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    teachers = config.teachers
    assert teachers.store is not None
    make = partial(make_views, todo=todo, index=index, wanted=needs(index, info), info=info)
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
    """The images of the files `chunk["id"]`, each packed with its view and row group: the rows of the group that need a
    target, augmented as the training will augment them when it comes to this view."""
    # Not imported above, see `make_chunk`.
    import torch

    from multas_ray.data.collate import make_train_batch

    torch.set_num_threads(1)
    for number in chunk["id"]:
        view, block = todo[number]
        needed = np.logical_or.reduce(list(wanted.values())) & (index.block == block)
        rows = np.flatnonzero(needed)
        views = np.full_like(rows, view)
        seeds = mix(info.seed, views, rows)
        batch = make_train_batch(index, Part(0, 0, info.size, rows, views, views, seeds), info.augment)
        distil = {task: np.flatnonzero(mask[batch.part.rows]) for task, mask in wanted.items()}
        yield pack([(view, block, replace(batch, distil=distil, truth={}))])


class Writer:
    """An actor of the job: the teachers, whose answers it writes."""

    def __init__(self, specs: Mapping[Task, TeacherSpec], threads: int, path: str) -> None:
        import torch

        torch.set_num_threads(threads)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.teachers = {task: spec.load(device) for task, spec in specs.items()}
        self.path = path

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write the file of one packed batch of `make_views`."""
        try:
            [(view, block, batch)] = unpack(table)
            size = self._write(view, block, batch)
        except UserError as error:
            # Raised here it would reach the job as Ray Data's, without its own type.
            return pa.table({"images": [0], "bytes": [0], "error": [str(error)]})
        return pa.table({"images": [len(batch.images)], "bytes": [size], "error": [""]})

    def _write(self, view: int, block: int, batch: TrainBatch) -> int:
        """Bytes of the file."""
        images = batch.images
        columns: dict[str, list[Any]] = {task: [None] * len(images) for task in TASKS}
        for task, teacher in self.teachers.items():
            rows = batch.distil[task]
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                for row, packed in zip(some, teacher(images[some]).packed or (), strict=True):
                    columns[task][row] = packed
        columns |= {
            "image_id": list(batch.ids),
            "view": [view] * len(images),
            "seed": batch.part.seeds.tolist(),
            "digest": digests(images).tolist(),
        }
        return write_file(self.path, view, block, pa.table(columns, schema=SCHEMA))
