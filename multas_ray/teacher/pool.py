"""Where a worker's soft targets come from: a pool of Ray actors that works ahead, or teachers inside the worker."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from multas_ray.config import Task, TeachersConfig
from multas_ray.teacher.teacher import SoftTargets, Teacher

Batch = dict[str, np.ndarray]
Handles = dict[Task, list[ActorHandle]]
Rows = Mapping[Task, np.ndarray]
"""Rows of a batch that each task is distilled on."""


@ray.remote
class TeacherActor:
    """A teacher of the pool."""

    def __init__(
        self, task: Task, checkpoint: str, classes: Sequence[str], threads: int, precision: str, features: bool
    ) -> None:
        torch.set_num_threads(threads)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.teacher = Teacher(task, checkpoint, classes, device, precision, features)

    def soft_targets(self, images: np.ndarray, rows: np.ndarray) -> SoftTargets:
        """Soft targets of some rows of a batch's images (b, 3, size, size) uint8."""
        return self.teacher(images[rows])

    def ready(self) -> bool:
        """Answers once the teacher is loaded."""
        return True


def start_pool(
    config: TeachersConfig,
    tasks: Sequence[Task],
    classes: Mapping[Task, Sequence[str]],
    precision: str = "float32",
    features: bool = False,
) -> Handles:
    """Start the actors of these tasks' teachers and wait until all are loaded.

    The pool lives as long as its handles and the process that called this: through restarts of the training workers.
    """
    resources = config.resources
    handles: Handles = {}
    for task in tasks:
        teacher = config.of(task)
        assert teacher is not None
        actor = TeacherActor.options(  # type: ignore[attr-defined]
            num_cpus=resources.cpu,
            num_gpus=resources.gpu,
            resources=resources.custom,
            max_restarts=-1,
            max_task_retries=-1,
        )
        handles[task] = [
            actor.remote(task, teacher.checkpoint, classes[task], config.threads, precision, features)
            for _ in range(config.replicas)
        ]
    ray.get([handle.ready.remote() for replicas in handles.values() for handle in replicas])
    return handles


class PoolClient:
    """A worker's view of the pool. Each request goes to the replica with the fewest of this worker's in flight."""

    def __init__(self, handles: Handles) -> None:
        self.handles = handles
        self.in_flight = {task: [0] * len(replicas) for task, replicas in handles.items()}

    def submit(self, images: np.ndarray, rows: Rows) -> Callable[[], SoftTargets]:
        """Send the rows' images to their teachers; the call that is returned waits for the answers.

        The images enter the object store once, for all teachers.
        """
        wanted = {task: task_rows for task, task_rows in rows.items() if len(task_rows)}
        if not wanted:
            return dict
        shared = ray.put(images)
        requests = []
        for task, task_rows in wanted.items():
            load = self.in_flight[task]
            replica = load.index(min(load))
            load[replica] += 1
            requests.append((task, replica, self.handles[task][replica].soft_targets.remote(shared, task_rows)))

        def collect() -> SoftTargets:
            targets: SoftTargets = {}
            for task, replica, answer in requests:
                try:
                    targets |= ray.get(answer)
                finally:
                    self.in_flight[task][replica] -= 1
            return targets

        return collect


class InlineTeachers:
    """Teachers inside the worker: computed when they are asked for, on the worker's device."""

    def __init__(
        self,
        config: TeachersConfig,
        tasks: Sequence[Task],
        classes: Mapping[Task, Sequence[str]],
        device: str,
        precision: str = "float32",
        features: bool = False,
    ) -> None:
        self.teachers: dict[Task, Teacher] = {}
        for task in tasks:
            teacher = config.of(task)
            assert teacher is not None
            self.teachers[task] = Teacher(task, teacher.checkpoint, classes[task], device, precision, features)

    def submit(self, images: np.ndarray, rows: Rows) -> Callable[[], SoftTargets]:
        """As `PoolClient.submit`; the work is done by the call that is returned."""

        def collect() -> SoftTargets:
            targets: SoftTargets = {}
            for task, task_rows in rows.items():
                if len(task_rows):
                    targets |= self.teachers[task](images[task_rows])
            return targets

        return collect


@dataclass
class Fed:
    """A batch with its soft targets."""

    batch: Batch
    rows: Rows
    soft: SoftTargets
    data_wait: float
    """Seconds spent waiting for data since the batch before."""
    teacher_wait: float
    """Seconds spent waiting for this batch's soft targets."""


def with_soft_targets(
    batches: Iterable[Batch],
    teachers: PoolClient | InlineTeachers,
    rows_of: Callable[[Batch], Rows],
    ahead: int,
) -> Iterator[Fed]:
    """Batches with their soft targets, in order. The requests of the next `ahead` batches are always under way, and
    none is waited for before its batch is due."""
    source = iter(batches)
    window: deque[tuple[Batch, Rows, Callable[[], SoftTargets]]] = deque()
    exhausted = False
    while True:
        started = perf_counter()
        while not exhausted and len(window) <= ahead:
            batch = next(source, None)
            if batch is None:
                exhausted = True
                break
            rows = rows_of(batch)
            window.append((batch, rows, teachers.submit(batch["images"], rows)))
        if not window:
            return
        data_wait = perf_counter() - started
        batch, rows, collect = window.popleft()
        started = perf_counter()
        soft = collect()
        yield Fed(batch, rows, soft, data_wait, perf_counter() - started)
