"""Benchmark of the teacher pool with simulated accelerators: real images, stream and pool, and sleeps for the networks.

It shows whether the pool keeps up: a student's step and a teacher's answer take a fixed time, as they would on
accelerators of their own, while all that this project adds to them (stream, transport, waiting) is real.
"""

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

import numpy as np
import ray
import ray.train
import torch.distributed as dist
from ray import cloudpickle
from ray.train import DataConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from multas_ray.config import AugmentConfig, Resources, Task, TeachersConfig
from multas_ray.data.batch import Compared, Some, TrainBatch
from multas_ray.data.index import read_index
from multas_ray.data.plan import lay_plan
from multas_ray.data.stream import PlannedStream, read_batches, stream, stream_options
from multas_ray.tasks.detection.anchors import anchors
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.teacher.feed import with_soft_targets
from multas_ray.teacher.pool import Handles, PoolClient, start_pool
from multas_ray.teacher.teacher import Answer, Teacher, digests

STEP_S, ANSWER_S = 0.2, 0.15
"""Seconds of a student's step and of a teacher's answer for any number of rows."""
ROWS = 4
"""Number of images of a worker's batch: half without boxes, half without masks."""
AHEAD = TeachersConfig().prefetch
"""Number of batches that are requested ahead."""
CLASSES = 20
# Sent to Ray's workers as code: they cannot import this module where the checkout is not on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class SimulatedTeacher:
    """Teacher that sleeps, and answers with zeros of the right size."""

    task: Task
    seconds: float
    """Duration of an answer."""
    size: int
    """Side of the images in pixels."""

    def load(self, device: str) -> Teacher:
        """Return the function that answers."""
        count = len(anchors(self.size, self.size))

        def zeros(*shape: int) -> np.ndarray:
            return np.zeros(shape, np.float16)

        def answer(images: np.ndarray) -> Answer:
            began = perf_counter()
            number, side = len(images), self.size // 4
            dense: Any = zeros(number, CLASSES + 1, side, side)
            if self.task == "det":
                dense = DetectionOutput(zeros(number, count, CLASSES), zeros(number, count, 4))  # type: ignore[arg-type]
            result = Answer(digests(images), dense=dense)
            sleep(max(0.0, self.seconds - (perf_counter() - began)))
            return result

        return answer


@dataclass(frozen=True)
class Case:
    """Steps with one pool of teachers."""

    pool: Handles
    replicas: int
    """Number of replicas of each teacher that are used."""
    warmup: int
    """Number of steps before the measurement."""
    steps: int
    """Number of steps that are measured."""


@dataclass(frozen=True)
class Outcome:
    """Measurements of rank 0: medians over the steps."""

    step_s: float
    data_wait_s: float
    teacher_wait_s: float
    memory_mb: float
    """Growth of the worker's peak memory over the measured steps."""


def start_simulated_pool(seconds: float, replicas: int, size: int) -> Handles:
    """Start a pool of two simulated teachers.

    Args:
        seconds: duration of an answer.
        replicas: number of replicas of each teacher.
        size: side of the images in pixels.
    """
    config = TeachersConfig(replicas=replicas, resources=Resources(cpu=0.01))
    tasks: tuple[Task, ...] = ("det", "seg")
    return start_pool(config, {task: SimulatedTeacher(task, seconds, size) for task in tasks})


def simulate(path: str, size: int, workers: int, cases: Sequence[Case], parallel: int) -> list[Outcome]:
    """Train simulated students, case after case, on one stream.

    Args:
        path: folder of a data set whose training split has rows with boxes only and rows with masks only.
        size: side of the images in pixels.
        workers: number of students.
        cases: pools, and numbers of their replicas, to measure with.
        parallel: largest number of data tasks at a time.

    Returns:
        Outcome of each case.
    """
    half = ROWS * workers // 2
    plan = lay_plan(
        read_index(path, "train"),
        usable=("det", "seg"),
        mixing={"det": half, "seg": half},
        batch_size=2 * half,
        # Some more, which are fetched ahead: the last case must not run into the end of the stream.
        steps=sum(case.warmup + case.steps for case in cases) + 8,
        seed=0,
        sizes=[size],
        window=16,
    )
    planned = PlannedStream(plan, augment=AugmentConfig())
    source = partial(stream, planned, workers, parallel=parallel, resources=Resources(cpu=0.25))
    # Not `asdict`, which would copy the actors' handles.
    settings = {"cases": [vars(case) for case in cases]}
    with TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _student,
            train_loop_config=settings,
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.1}),
            datasets={"train": source},
            dataset_config=DataConfig(
                execution_options=stream_options(plan, workers, parallel), enable_shard_locality=False
            ),
            run_config=RunConfig(
                name="simulated", storage_path=str(Path(folder)), logging_config=LoggingConfig(log_level="ERROR")
            ),
        )
        return [Outcome(**outcome) for outcome in trainer.fit().return_value]


def _student(settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """Run the loop of `multas_ray.train.loop` in a worker, with a sleep for a step; return an `Outcome` a case."""
    workers = ray.train.get_context().get_world_size()
    batches = read_batches(ray.train.get_dataset_shard("train"))
    outcomes = []
    for case in (Case(**case) for case in settings["cases"]):
        pool = {task: replicas[: case.replicas] for task, replicas in case.pool.items()}
        chosen = islice(batches, case.warmup + case.steps)
        lines = []
        last = perf_counter()
        for fed in with_soft_targets(map(_distil_missing, chosen), PoolClient(pool), AHEAD):
            sleep(STEP_S)
            if workers > 1:
                # In place of the gradients' all-reduce: no worker is ahead of another.
                dist.barrier()
            now = perf_counter()
            lines.append((now - last, fed.data_wait, fed.teacher_wait))
            last = now
            if len(lines) == case.warmup:
                before = _peak_mb()
        step, data, teacher = (median(column) for column in zip(*lines[case.warmup :], strict=True))
        outcomes.append(asdict(Outcome(step, data, teacher, _peak_mb() - before)))
    return outcomes


def _peak_mb() -> float:
    """Return the peak memory of this process so far, in MB."""
    # Bytes on macOS, kilobytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _distil_missing(batch: TrainBatch) -> TrainBatch:
    """Select for each task the rows without its annotation to distil."""
    distil = {}
    for task, truth in batch.truth.items():
        rows = np.setdiff1d(np.arange(len(batch.ids)), truth.rows)
        marks = np.ones((len(rows), 1), bool)
        distil[task] = Some(rows, Compared(marks, ~marks))
    return replace(batch, distil=distil)
