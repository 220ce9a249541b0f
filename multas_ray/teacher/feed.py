"""Batches with their soft targets: asked for ahead of time, checked to be of the very pixels they came for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import numpy as np

from multas_ray.config import Task
from multas_ray.data.batch import TrainBatch
from multas_ray.errors import RunError
from multas_ray.teacher.teacher import SoftTargets, Teacher, digests


class Teachers(Protocol):
    """Where soft targets come from: `PoolClient`, `InlineTeachers` or `StoredTargets`."""

    def submit(self, batch: TrainBatch) -> Callable[[], SoftTargets]:
        """Ask for soft targets of the rows `batch.distil`; the call that is returned waits for them."""
        ...


class InlineTeachers:
    """Teachers inside the worker: computed when they are asked for, on the worker's device."""

    def __init__(self, teachers: Mapping[Task, Teacher]) -> None:
        self.teachers = teachers

    def submit(self, batch: TrainBatch) -> Callable[[], SoftTargets]:
        """See `Teachers`; the work is done by the call that is returned."""

        def collect() -> SoftTargets:
            return {task: self.teachers[task](batch.images[rows]) for task, rows in batch.distil.items() if len(rows)}

        return collect


class StoredTargets:
    """Soft targets that came with the batch, out of a store."""

    def submit(self, batch: TrainBatch) -> Callable[[], SoftTargets]:
        """See `Teachers`."""
        return lambda: {task: batch.soft[task] for task, rows in batch.distil.items() if len(rows)}


@dataclass
class Fed:
    """A batch with its soft targets."""

    batch: TrainBatch
    soft: SoftTargets
    data_wait: float
    """Seconds that the training waited for data since the batch before."""
    teacher_wait: float
    """Seconds that it waited for this batch's soft targets."""


def with_soft_targets(batches: Iterable[TrainBatch], teachers: Teachers, ahead: int) -> Iterator[Fed]:
    """Batches with their soft targets, in order. The requests of the next `ahead` batches are always under way, and
    none is waited for before its batch is due.

    With `ahead` above 0 all this is the work of a thread, one batch before the training: what passes through Ray then
    costs the training no time.

    Raises:
        RunError: soft targets are of other pixels than the batch's.
    """
    feed = _feed(iter(batches), teachers, ahead)
    return _one_ahead(feed) if ahead else feed


def _feed(source: Iterator[TrainBatch], teachers: Teachers, ahead: int) -> Iterator[Fed]:
    window: deque[tuple[TrainBatch, Callable[[], SoftTargets]]] = deque()
    exhausted = False
    while True:
        started = perf_counter()
        while not exhausted and len(window) <= ahead:
            batch = next(source, None)
            if batch is None:
                exhausted = True
                break
            window.append((batch, teachers.submit(batch)))
        if not window:
            return
        data_wait = perf_counter() - started
        batch, collect = window.popleft()
        started = perf_counter()
        soft = collect()
        check_digests(batch, soft)
        yield Fed(batch, soft, data_wait, perf_counter() - started)


def _one_ahead(feed: Iterator[Fed]) -> Iterator[Fed]:
    """The feed, made by a thread while the one who takes it is at work. What is left to wait is shared between data and
    teachers as the thread's own time was."""
    maker = ThreadPoolExecutor(1)
    try:
        coming = maker.submit(next, feed, None)
        while True:
            started = perf_counter()
            fed = coming.result()
            if fed is None:
                return
            coming = maker.submit(next, feed, None)
            part = (perf_counter() - started) / max(fed.data_wait + fed.teacher_wait, 1e-9)
            yield replace(fed, data_wait=part * fed.data_wait, teacher_wait=part * fed.teacher_wait)
    finally:
        maker.shutdown(wait=False, cancel_futures=True)


def check_digests(batch: TrainBatch, soft: SoftTargets) -> None:
    """Stop before training on targets that are missing, or are another image's."""
    for task, rows in batch.distil.items():
        if not len(rows):
            continue
        answer = soft.get(task)
        if answer is None or not np.array_equal(answer.digests, digests(batch.images[rows])):
            raise RunError(f"step {batch.part.step}: soft targets of {task} are not of this batch's pixels")
