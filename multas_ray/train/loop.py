"""Training loop of a Ray Train worker: resume, then step, log, evaluate and checkpoint to the plan's last step."""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from time import time
from typing import Any, TypedDict, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model

from multas_ray.checkpoint.folder import Meta, prune, read_meta, step_folder
from multas_ray.checkpoint.weights import load_state, write_checkpoint
from multas_ray.config import Config, Task
from multas_ray.data.batch import EvalBatch, TrainBatch
from multas_ray.data.index import Index
from multas_ray.data.stream import read_batches
from multas_ray.errors import RunError
from multas_ray.evaluate.evaluator import evaluate
from multas_ray.model.precision import autocast
from multas_ray.report.overlays import draw_samples
from multas_ray.storage import StoragePath
from multas_ray.teacher.ensemble import TaskTeacher
from multas_ray.teacher.feed import InlineTeachers, StoredTargets, Teachers, with_soft_targets
from multas_ray.teacher.own import ema_teachers
from multas_ray.teacher.pool import Handles, PoolClient, PoolMonitor
from multas_ray.train.collective import WorkerGroup
from multas_ray.train.meter import Meter, slowest
from multas_ray.train.step import named_losses
from multas_ray.train.tracking import Progress, RunTracker, Tracker
from multas_ray.train.trainer import Trainer

Batch = TypeVar("Batch", TrainBatch, EvalBatch)
MIN_STEPS_PER_CHECKPOINT = 50
"""Least number of steps between the checkpoints at the ends of epochs."""
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors of storage that would occur again after a restart."""
MAX_IMAGES_NAMED = 20
"""Largest number of images that an error names."""


@dataclass(frozen=True)
class WorkerJob:
    """Order of the driver to every worker of a run."""

    config: Config
    attempt: Mapping[str, Any]
    """Description of this start, see `describe_attempt`."""
    began: float
    """Time of the start in seconds since 1970, moved back by the duration of earlier attempts."""
    classes: Mapping[Task, Sequence[str]]
    """Names of each task's classes."""
    steps_per_epoch: float
    sources: tuple[str, ...]
    """Names of the data sets to evaluate on, each by itself too; empty for a single one."""
    samples: Index
    """Validation rows to draw."""
    teachers: Mapping[Task, TaskTeacher]
    """Teacher of each distilled task."""
    pool: Handles | None
    """Actors of the teachers; None without a pool."""


class WorkerResult(TypedDict):
    """Result of a worker."""

    final: dict[str, float]
    """Metrics of the last evaluation."""
    steps: int


def train_worker(job: WorkerJob) -> WorkerResult:
    """Train as one worker of a run.

    Raises:
        RunError: the run cannot continue: too many bad steps, storage that cannot be written, a worker that hangs.
    """
    config = job.config
    context = ray.train.get_context()
    torch.set_num_threads(config.train.threads)
    group = WorkerGroup(context.get_world_rank(), context.get_world_size(), config.train.timeout_s)
    try:
        return _train(job, group)
    except RuntimeError as error:
        # The type of all errors of `torch.distributed`.
        reason = group.explain(error)
        if reason is None:
            raise
        raise RunError(reason) from error
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise RunError(f"{config.train.run} cannot be written ({error}); its older checkpoints are intact") from error


def _train(job: WorkerJob, group: WorkerGroup) -> WorkerResult:
    config, folder = job.config, StoragePath(job.config.train.run)
    progress = Progress(folder, writes=group.rank == 0)
    progress.starting("first batch")
    rejected = _Rejected()
    stream = rejected.watch(read_batches(ray.train.get_dataset_shard("train")))
    batches, start = first_step(stream, config.train.steps)
    progress.starting("network")
    trainer = _resumed_trainer(job, folder, start)
    teachers, ahead = _teachers(job, trainer)
    nodes = group.gather(worker_location())
    with RunTracker(folder, config, start, job.attempt) if group.rank == 0 else Tracker() as tracker:
        tracker.workers(nodes)
        run = _Run(job, group, trainer, tracker, rejected)
        metrics: dict[str, float] = {}
        step = start
        for fed in with_soft_targets(batches, teachers, ahead):
            check_position(fed.batch, step, group.rank)
            outcome = trainer.step(fed.batch, fed.soft, step, group.workers)
            step += 1
            progress.step(step, first=step == start + 1)
            run.meter.add(outcome, fed)
            if outcome.status == "bad":
                run.note_bad_step(step, [image_id for image_id in fed.batch.ids if image_id], outcome.finite)
            evaluates = step == config.train.steps or _due(step, config.evaluate.every_steps)
            saves = evaluates or checkpoint_due(step, job.steps_per_epoch, config.train.checkpoint_every_steps)
            if saves or _due(step, config.train.log_every_steps):
                run.log(step)
            if evaluates:
                metrics = run.evaluate(step)
            if saves:
                run.save(step, metrics if evaluates else {})
        if not metrics:
            # An earlier attempt trained to the last step, but did not conclude.
            metrics = read_meta(step_folder(folder, step)).metrics or run.evaluate(step)
        tracker.table("final", metrics)
    return {"final": metrics, "steps": step}


def _resumed_trainer(job: WorkerJob, folder: StoragePath, start: int) -> Trainer:
    """Build the trainer at step `start`: new, or from the run's checkpoint of that step."""
    config, device = job.config, get_device()
    if start:
        config = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False})})
    wrap = partial(prepare_model, parallel_strategy_kwargs={"gradient_as_bucket_view": True})
    trainer = Trainer(config, job.classes, device, wrap=wrap)
    if start:
        checkpoint = step_folder(folder, start)
        trainer.load(load_state(checkpoint, device), str(checkpoint))
    return trainer


def _teachers(job: WorkerJob, trainer: Trainer) -> tuple[Teachers, int]:
    """Return the source of this worker's soft targets, and the number of batches that are requested ahead."""
    if job.pool is not None:
        return PoolClient(job.pool), job.config.teachers.prefetch
    # Nothing is requested ahead of inline teachers: their work would take the step's threads, or its GPU, from it.
    if job.config.teachers.placement == "inline" and job.teachers:
        return InlineTeachers({task: spec.load(str(trainer.device)) for task, spec in job.teachers.items()}), 0
    if job.config.teachers.placement == "ema":
        return InlineTeachers(ema_teachers(job.config, trainer.ema.model)), 0
    return StoredTargets(), 1


class _Run:
    """Work of a run beside its steps. Every worker calls every method."""

    def __init__(
        self, job: WorkerJob, group: WorkerGroup, trainer: Trainer, tracker: Tracker, rejected: "_Rejected"
    ) -> None:
        """Start to measure."""
        self.job, self.config, self.folder = job, job.config, StoragePath(job.config.train.run)
        self.group, self.trainer, self.tracker, self.rejected = group, trainer, tracker, rejected
        self.monitor = PoolMonitor(job.pool or {} if group.rank == 0 else {})
        self.meter = Meter()

    def note_bad_step(self, step: int, ids: list[str], finite: bool) -> None:
        """Log a step that was skipped.

        Args:
            step: number of steps so far, with this one.
            ids: this worker's images.
            finite: whether this worker's losses were finite.

        Raises:
            RunError: more steps were skipped than allowed.
        """
        per_rank = self.group.gather((ids, finite))
        # Images of the ranks whose own loss was not finite; of all ranks if only the gradient was not.
        suspects = [images for images, fine in per_rank if not fine] or [images for images, _ in per_rank]
        images = list(chain.from_iterable(suspects))
        self.tracker.bad_step(step, images)
        count, allowed = self.trainer.bad_steps, self.config.train.max_bad_steps
        if count > allowed:
            more = len(images) - MAX_IMAGES_NAMED
            named = ", ".join(sorted(images)[:MAX_IMAGES_NAMED]) + (f" and {more} more" if more > 0 else "")
            raise RunError(
                f"the loss or its gradient was not finite in {count} steps, train.max_bad_steps allows {allowed}; "
                f"the last was step {step}, images {named}"
            )

    def log(self, step: int) -> None:
        """Log the metrics of the steps since the last line."""
        meter, trainer = self.meter, self.trainer
        losses = named_losses(meter.losses(self.group.workers, trainer.device), trainer.weights) if meter.taken else {}
        per_rank = self.group.gather((meter.local_s, self.rejected.take()))
        self.tracker.reject(row for _, rows in per_rank for row in rows)
        line = {
            "epoch": step / self.job.steps_per_epoch,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            **losses,
            **meter.times(self.config.train.batch_size),
            **slowest([seconds for seconds, _ in per_rank]),
            "bad_steps": trainer.bad_steps,
            "rejected_rows": len(self.tracker.rejected),
            **self.monitor.read(),
        }
        self.tracker.log(step, line)
        self.meter = Meter()

    def evaluate(self, step: int) -> dict[str, float]:
        """Score the moving average on the validation split, log the metrics and draw samples."""
        network = self.trainer.ema.model
        if dist.is_initialized():
            # Workers' batch statistics differ between steps: those of rank 0 are scored.
            for value in network.state_dict().values():
                dist.broadcast(value, 0)
        batches = self.rejected.watch(read_batches(ray.train.get_dataset_shard("val")))
        config = self.config.evaluate
        with autocast(self.trainer.device, self.config.train.precision):
            metrics = evaluate(network, batches, config, self.job.sources)
        per_rank = self.group.gather(self.rejected.take())
        self.tracker.reject(row for rows in per_rank for row in rows)
        self.tracker.log(step, metrics)
        with autocast(self.trainer.device, self.config.train.precision):
            size = self.config.data.eval_size
            self.tracker.samples(step, lambda: draw_samples(network, self.job.samples, size, config))
        ray.train.report({"step": step, **metrics})
        return metrics

    def save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a checkpoint, and delete those that it makes superfluous, on rank 0; restart the clock on all ranks."""
        if self.group.rank == 0:
            # A run that resumes from this step needs the curve up to it.
            self.tracker.flush()
            network = self.trainer.network
            meta = Meta(
                step=step,
                model=network.config.model_copy(update={"pretrained": False}),
                det_classes=list(network.det_classes),
                seg_classes=list(network.seg_classes),
                size=self.config.data.eval_size,
                evaluate=self.config.evaluate,
                metrics=dict(metrics),
                seconds=round(time() - self.job.began, 1),
            )
            folder = step_folder(self.folder, step)
            write_checkpoint(folder, self.trainer.ema.model.state_dict(), self.trainer.state(), meta)
            prune(self.folder, self.config.train.keep_checkpoints)
        self.meter.restart()


class _Rejected:
    """Rows that this worker's streams have left out since the last `take`."""

    def __init__(self) -> None:
        """Start with none."""
        self.rows: list[dict[str, str]] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and collect the rows that they leave out."""
        for batch in batches:
            self.rows += [row._asdict() for row in batch.rejected]
            yield batch

    def take(self) -> list[dict[str, str]]:
        """Return the collected rows, and forget them."""
        rows, self.rows = self.rows, []
        return rows


def first_step(batches: Iterator[TrainBatch], total: int) -> tuple[Iterator[TrainBatch], int]:
    """Find the step from which a run resumes: that of the stream's first batch, as `start_step` has decided.

    Args:
        batches: training stream.
        total: number of steps of the run: the step to resume from if the stream is empty.

    Returns:
        The whole stream, and the step.
    """
    first = next(batches, None)
    if first is None:
        return batches, total
    return chain([first], batches), first.part.step


def check_position(batch: TrainBatch, step: int, rank: int) -> None:
    """Check that a batch is that of this step and worker.

    Raises:
        RuntimeError: it is another's.
    """
    part = batch.part
    if part.step != step or part.rank != rank:
        raise RuntimeError(
            f"the data stream is out of order: rank {rank} at step {step} got the batch of rank {part.rank}, "
            f"step {part.step}"
        )


def _due(step: int, every: int | None) -> bool:
    return bool(every and step % every == 0)


def checkpoint_due(step: int, steps_per_epoch: float, every: int | None) -> bool:
    """Return whether a checkpoint is due after a step.

    Args:
        step: number of steps so far.
        steps_per_epoch: length of an epoch; a checkpoint is due at its end. Shorter ones than MIN_STEPS_PER_CHECKPOINT
            count as that long.
        every: number of steps after which a checkpoint is due too; None for none.
    """
    epoch = max(steps_per_epoch, MIN_STEPS_PER_CHECKPOINT)
    return int(step / epoch) > int((step - 1) / epoch) or _due(step, every)


def worker_location() -> dict[str, Any]:
    """Return the place of this worker: address and id of its node, and process id."""
    context = ray.get_runtime_context()
    return {"node": ray.util.get_node_ip_address(), "node_id": context.get_node_id(), "pid": os.getpid()}
