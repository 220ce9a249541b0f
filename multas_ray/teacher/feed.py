"""Batches with their soft targets: requested ahead of time, and checked by digests of the batch's pixels."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import numpy as np

from multas_ray.config import Task
from multas_ray.data.batch import TrainBatch, distilled_rows
from multas_ray.errors import RunError
from multas_ray.teacher.teacher import SoftTargets, Teacher, digests


class Teachers(Protocol):
    """Source of soft targets: `PoolClient`, `InlineTeachers` or `StoredTargets`."""

    def submit(self, batch: TrainBatch) -> Callable[[], SoftTargets]:
        """Request the soft targets of the rows `batch.distil`.

        Returns:
            A function that waits for the soft targets and returns them.
        """
        ...


class InlineTeachers:
    """Teachers inside the worker, on its device."""

    def __init__(self, teachers: Mapping[Task, Teacher]) -> None:
        """Take the loaded teacher of each distilled task."""
        self.teachers = teachers

    def submit(self, batch: TrainBatch) -> Callable[[], SoftTargets]:
        """Return a function that computes the soft targets: nothing is computed ahead."""

        def collect() -> SoftTargets:
            chosen = distilled_rows(batch)
            return {task: self.teachers[task](batch.images[rows]) for task, rows in chosen.items()}

        return collect


class StoredTargets:
    """Soft targets from a store, which came with the batch."""

    def submit(self, batch: TrainBatch) -> Callable[[], SoftTargets]:
        """Return a function that takes the soft targets out of the batch."""
        return lambda: {task: batch.soft[task] for task in distilled_rows(batch)}


@dataclass
class Fed:
    """Batch with its soft targets."""

    batch: TrainBatch
    soft: SoftTargets
    data_wait: float
    """Seconds that the training waited for data since the previous batch."""
    teacher_wait: float
    """Seconds that the training waited for this batch's soft targets."""


def with_soft_targets(batches: Iterable[TrainBatch], teachers: Teachers, ahead: int) -> Iterator[Fed]:
    """Add the soft targets to batches, and keep their order.

    The requests of the next `ahead` batches are always under way, and none is waited for before its batch is due.

    With `ahead` above 0 a thread does all this, one batch before the training: transport through Ray then costs the
    training no time.

    Args:
        batches: batches of the training stream.
        teachers: source of the soft targets.
        ahead: number of batches that are requested ahead, from 0 on.

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
    """Compute the feed in a thread, one batch ahead of its consumer.

    The consumer's remaining wait is divided between data and teachers in proportion to the thread's own waits.
    """
    maker = ThreadPoolExecutor(1)
    try:
        coming = maker.submit(next, feed, None)
        while True:
            started = perf_counter()
            fed = coming.result()
            if fed is None:
                return
            coming = maker.submit(next, feed, None)
            share = (perf_counter() - started) / max(fed.data_wait + fed.teacher_wait, 1e-9)
            yield replace(fed, data_wait=share * fed.data_wait, teacher_wait=share * fed.teacher_wait)
    finally:
        maker.shutdown(wait=False, cancel_futures=True)


def check_digests(batch: TrainBatch, soft: SoftTargets) -> None:
    """Check that every row to distil has a soft target for the batch's own pixels.

    Raises:
        RunError: soft targets are missing, or are another image's.
    """
    for task, rows in distilled_rows(batch).items():
        answer = soft.get(task)
        if answer is None or not np.array_equal(answer.digests, digests(batch.images[rows])):
            raise RunError(f"step {batch.part.step}: soft targets of {task} are not of this batch's pixels")
