"""What each Ray Train worker runs: resume, then step, log, evaluate and checkpoint until the plan's last step."""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import chain
from time import time
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model

from multas_ray.checkpoint.folder import Meta, prune, read_meta, step_folder
from multas_ray.checkpoint.weights import load_state, write_checkpoint
from multas_ray.config import Config
from multas_ray.data.collate import rejected_rows
from multas_ray.data.stream import read_batches
from multas_ray.errors import RunError
from multas_ray.evaluate.evaluator import evaluate
from multas_ray.model.precision import autocast
from multas_ray.report.overlays import draw_samples
from multas_ray.storage import StoragePath
from multas_ray.teacher.feed import InlineTeachers, StoredTargets, Teachers, with_soft_targets
from multas_ray.teacher.pool import PoolClient, PoolMonitor
from multas_ray.teacher.teacher import itself_as_teachers
from multas_ray.train.collective import WorkerGroup
from multas_ray.train.meter import Meter, slowest
from multas_ray.train.step import distilled_rows, named_losses
from multas_ray.train.tracking import Progress, Tracker
from multas_ray.train.trainer import Trainer, image_ids

Batch = dict[str, np.ndarray]
LEAST_STEPS = 50
"""Of an epoch, for a checkpoint at its end."""
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors of storage that a restart would meet again."""
NAMED = 20
"""Images named in an error."""


def train_worker(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The training loop of one worker.

    Args:
        settings: config (a dumped `Config`), attempt (see `describe_attempt`), began (in seconds of
            the wall clock, moved back by what earlier attempts took), det_classes, seg_classes, steps_per_epoch,
            samples: the index of the validation rows to draw, teachers: the `TeacherSpec`s of the distilled tasks, and
            pool: their actors' handles, None without a pool.

    Returns:
        final (metrics of the last evaluation), steps.

    Raises:
        RunError: the run cannot go on: too many bad steps, storage that cannot be written, a worker that hangs.
    """
    config = Config.model_validate(settings["config"])
    context = ray.train.get_context()
    torch.set_num_threads(config.train.threads)
    peers = WorkerGroup(context.get_world_rank(), context.get_world_size(), config.train.timeout_s)
    try:
        return _Worker(config, settings, peers).run()
    except RuntimeError as error:
        # What `torch.distributed` raises.
        reason = peers.explain(error)
        if reason is None:
            raise
        raise RunError(reason) from error
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise RunError(f"{config.train.run} cannot be written ({error}); its older checkpoints are intact") from error


class _Worker:
    """One worker's run."""

    def __init__(self, config: Config, settings: Mapping[str, Any], peers: WorkerGroup) -> None:
        self.config, self.peers = config, peers
        self.settings = settings
        self.folder = StoragePath(config.train.run)
        self.device = get_device()
        self.progress = Progress(self.folder) if peers.rank == 0 else None
        self._starting("first batch")
        self.rejected = _Rejected()
        stream = self.rejected.watch(read_batches(ray.train.get_dataset_shard("train")))
        self.batches, self.start = first_step(stream, config.train.steps)
        config.model.pretrained &= self.start == 0
        classes = (settings["det_classes"], settings["seg_classes"])
        self._starting("network")
        wrap = partial(prepare_model, parallel_strategy_kwargs={"gradient_as_bucket_view": True})
        self.trainer = Trainer(config, *classes, self.device, wrap=wrap)
        if self.start:
            folder = step_folder(self.folder, self.start)
            self.trainer.load(load_state(folder, self.device), str(folder))

    def _starting(self, what: str) -> None:
        if self.progress is not None:
            self.progress.starting(what)

    def run(self) -> dict[str, Any]:
        """See `train_worker`."""
        config, peers, trainer = self.config, self.peers, self.trainer
        teachers, ahead = self._teachers()
        monitor = PoolMonitor(self.settings["pool"]) if peers.rank == 0 and self.settings["pool"] else None
        nodes = peers.gather(_whereabouts())
        with (
            Tracker(self.folder, config, self.start, self.settings["attempt"])
            if peers.rank == 0
            else nullcontext() as tracker
        ):
            if tracker is not None:
                tracker.workers(nodes)
            meter = Meter()
            metrics: dict[str, float] = {}
            fed_batches = with_soft_targets(self.batches, teachers, lambda batch: distilled_rows(batch, config), ahead)
            step, steps_per_epoch = self.start, self.settings["steps_per_epoch"]
            for fed in fed_batches:
                check_position(fed.batch, step, peers.rank)
                outcome = trainer.step(fed.batch, fed.rows, fed.soft, step, peers.workers)
                step += 1
                if self.progress is not None:
                    self.progress.step(step, first=step == self.start + 1)
                meter.add(outcome, fed)
                if not outcome.taken:
                    self._bad_step(step, image_ids(fed.batch), outcome.finite, tracker)
                scored = step == config.train.steps or _due(step, config.evaluate.every_steps)
                kept = scored or checkpoint_due(step, steps_per_epoch, config.train.checkpoint_every_steps)
                if kept or _due(step, config.train.log_every_steps):
                    self._log(step, meter, monitor, tracker)
                    meter = Meter()
                if scored:
                    metrics = self._evaluate(step, tracker)
                if kept:
                    self._save(step, metrics if scored else {}, tracker)
                    meter.restart()
            if not metrics:
                # Trained to its end before, but not concluded.
                metrics = read_meta(step_folder(self.folder, step)).metrics or self._evaluate(step, tracker)
            if tracker is not None:
                tracker.table("final", metrics)
        return {"final": metrics, "steps": step}

    def _teachers(self) -> tuple[Teachers, int]:
        """Where this worker's soft targets come from, and how many batches ahead they are asked for."""
        if self.settings["pool"] is not None:
            return PoolClient(self.settings["pool"]), self.config.teachers.prefetch
        # None ahead inside the worker: what they compute would take the step's threads, or its GPU, from it.
        if self.config.teachers.placement == "inline" and self.settings["teachers"]:
            specs = self.settings["teachers"]
            return InlineTeachers({task: spec.load(str(self.device)) for task, spec in specs.items()}), 0
        if self.config.teachers.placement == "ema":
            return InlineTeachers(itself_as_teachers(self.config, self.trainer.ema.model)), 0
        return StoredTargets(), 1

    def _bad_step(self, step: int, ids: list[str], finite: bool, tracker: Tracker | None) -> None:
        """Put a step that was not taken on record, and stop if there have been too many."""
        told = self.peers.gather((ids, finite))
        # Of workers whose losses were not finite; where only the gradient was not, of all.
        images = [image for own, fine in told if not fine for image in own] or [i for own, _ in told for i in own]
        if tracker is not None:
            tracker.bad_step(step, images)
        count, most = self.trainer.bad_steps, self.config.train.max_bad_steps
        if count > most:
            named = ", ".join(sorted(images)[:NAMED]) + (f" and {len(images) - NAMED} more" * (len(images) > NAMED))
            raise RunError(
                f"the loss or its gradient was not finite in {count} steps, train.max_bad_steps allows {most}; "
                f"the last was step {step}, images {named}"
            )

    def _log(self, step: int, meter: Meter, monitor: PoolMonitor | None, tracker: Tracker | None) -> None:
        """Write a line of metrics; all workers call it."""
        trainer, steps_per_epoch = self.trainer, self.settings["steps_per_epoch"]
        losses = named_losses(meter.losses(self.peers.workers, self.device), trainer.weights) if meter.taken else {}
        told = self.peers.gather((meter.local_s, self.rejected.take()))
        if tracker is None:
            return
        tracker.reject(row for _, rows in told for row in rows)
        line = {
            "epoch": step / steps_per_epoch,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            **losses,
            **meter.times(self.config.train.batch_size),
            **slowest([own for own, _ in told]),
            "bad_steps": trainer.bad_steps,
            "rejected_rows": len(tracker.rejected),
            **(monitor.read() if monitor is not None else {}),
        }
        tracker.log(step, line)

    def _evaluate(self, step: int, tracker: Tracker | None) -> dict[str, float]:
        """Score the moving average on the validation split; all workers call it, rank 0 logs and draws."""
        network = self.trainer.ema.model
        if dist.is_initialized():
            # Workers' batch statistics differ between steps: rank 0's count.
            for value in network.state_dict().values():
                dist.broadcast(value, 0)
        batches = self.rejected.watch(read_batches(ray.train.get_dataset_shard("val")))
        config = self.config.evaluate
        with autocast(self.device, self.config.train.precision):
            metrics = evaluate(network, batches, config)
        rejected = self.peers.gather(self.rejected.take())
        if tracker is not None:
            tracker.reject(row for rows in rejected for row in rows)
            tracker.log(step, metrics)
            with autocast(self.device, self.config.train.precision):
                samples = draw_samples(network, self.settings["samples"], self.config.data.eval_size, config)
            tracker.samples(step, samples)
        ray.train.report({"step": step, **metrics})
        return metrics

    def _save(self, step: int, metrics: Mapping[str, float], tracker: Tracker | None) -> None:
        """Write a checkpoint, and delete those that it makes superfluous. The work of rank 0, which has the tracker."""
        if tracker is None:
            return
        # A run that goes on from here must find the curve up to here.
        tracker.metrics.flush()
        network = self.trainer.network
        meta = Meta(
            step=step,
            model=network.config,
            det_classes=list(network.det_classes),
            seg_classes=list(network.seg_classes),
            size=self.config.data.eval_size,
            evaluate=self.config.evaluate,
            metrics=dict(metrics),
            seconds=round(time() - self.settings["began"], 1),
        )
        folder = step_folder(self.folder, step)
        write_checkpoint(folder, self.trainer.ema.model.state_dict(), self.trainer.state(), meta)
        prune(self.folder, self.config.train.keep_checkpoints)


class _Rejected:
    """Rows that this worker's streams left out since they were asked for last."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, after a look at what they leave out."""
        for batch in batches:
            self.rows += rejected_rows(batch)
            yield batch

    def take(self) -> list[dict[str, str]]:
        """The rows, each told once."""
        rows, self.rows = self.rows, []
        return rows


def first_step(batches: Iterator[Batch], total: int) -> tuple[Iterator[Batch], int]:
    """The stream, and the step that its first batch belongs to: the plan decides where a run goes on."""
    first = next(batches, None)
    if first is None:
        return batches, total
    return chain([first], batches), int(first["step"])


def check_position(batch: Batch, step: int, rank: int) -> None:
    """Stop before training on a batch that is another step's or another worker's."""
    if int(batch["step"]) != step or int(batch["rank"]) != rank:
        raise RuntimeError(
            f"the data stream is out of order: rank {rank} at step {step} got the batch of "
            f"rank {batch['rank']}, step {batch['step']}"
        )


def _due(step: int, every: int | None) -> bool:
    return bool(every and step % every == 0)


def checkpoint_due(step: int, steps_per_epoch: float, every: int | None) -> bool:
    """Whether an epoch has just ended (where epochs have fewer than LEAST_STEPS: so many steps), or `every` steps."""
    epoch = max(steps_per_epoch, LEAST_STEPS)
    return int(step / epoch) > int((step - 1) / epoch) or _due(step, every)


def _whereabouts() -> dict[str, Any]:
    """Where this worker runs."""
    context = ray.get_runtime_context()
    return {"node": ray.util.get_node_ip_address(), "node_id": context.get_node_id(), "pid": os.getpid()}
