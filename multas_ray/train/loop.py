"""What each Ray Train worker runs: resume, then step, log, evaluate and checkpoint until the plan's last step."""

import shutil
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from datetime import datetime
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_device, prepare_model
from torch import nn

from multas_ray.config import Config
from multas_ray.data.stream import read_batches
from multas_ray.evaluate.evaluator import evaluate
from multas_ray.model.checkpoint import STATE, Meta, prune, read_meta, step_folder, verify
from multas_ray.model.network import MultiTaskNet, autocast
from multas_ray.model.weights import load_weights, write_checkpoint
from multas_ray.teacher.feed import InlineTeachers, StoredTargets, Teachers, with_soft_targets
from multas_ray.teacher.pool import PoolClient, PoolMonitor
from multas_ray.teacher.teacher import to_tensors
from multas_ray.train.optim import Ema, build_optimizer, learning_rate
from multas_ray.train.samples import SamplePictures
from multas_ray.train.step import distilled_rows, loss_terms, named_losses, term_weights, total_loss
from multas_ray.train.tracking import ERRORS, Tracker

Batch = dict[str, np.ndarray]
PREFETCH = 2
"""Batches fetched ahead from the object store."""


def train_worker(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The training loop of one worker; see `_train_worker`. What goes wrong is also written to the run's errors.log,
    since Ray restarts the workers without a word."""
    try:
        return _train_worker(settings)
    except Exception as error:
        rank = ray.train.get_context().get_world_rank()
        with (Path(settings["config"]["train"]["run"]) / ERRORS).open("a") as log:
            log.write(
                f"{datetime.now():%F %T} rank {rank}: {type(error).__name__}: {error}\n{traceback.format_exc()}\n"
            )
        raise


def _train_worker(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The training loop of one worker.

    Args:
        settings: config (a dumped `Config`), det_classes, seg_classes, steps_per_epoch, teachers: the `TeacherSpec`s of
            the distilled tasks, and pool: their actors' handles, None without a pool.

    Returns:
        On rank 0: final (metrics of the last evaluation), steps.
    """
    config = Config.model_validate(settings["config"])
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.train.threads)
    device = get_device()
    run = Path(config.train.run)

    batches, start = first_step(read_batches(ray.train.get_dataset_shard("train"), PREFETCH), config.train.steps)
    config.model.pretrained &= start == 0
    trainer = _Trainer(config, settings["det_classes"], settings["seg_classes"], device)
    if start:
        trainer.load(step_folder(run, start))
    teachers, ahead = _teachers(config, settings, device)
    monitor = PoolMonitor(settings["pool"]) if rank == 0 and settings["pool"] else None

    with Tracker(run, config, start) if rank == 0 else nullcontext() as tracker:
        meter = _Meter()
        metrics: dict[str, float] = {}
        fed_batches = with_soft_targets(batches, teachers, lambda batch: distilled_rows(batch, config), ahead)
        step = start
        for fed in fed_batches:
            check_position(fed.batch, step, rank)
            shares = trainer.step(fed.batch, fed.rows, fed.soft, step, workers)
            step += 1
            meter.add(shares, fed.data_wait, fed.teacher_wait)
            last = step == config.train.steps
            scored = last or bool(config.evaluate.every_steps and step % config.evaluate.every_steps == 0)
            kept = scored or _checkpoint_due(step, settings["steps_per_epoch"], config.train.checkpoint_every_steps)
            # Also before every checkpoint: one of a diverged network would take the place of a good one.
            if step % config.train.log_every_steps == 0 or kept:
                losses = named_losses(meter.read(workers, device), trainer.weights)
                if not np.isfinite(losses["loss/total"]):
                    raise FloatingPointError(f"the loss is {losses['loss/total']} around step {step}: {losses}")
                if tracker is not None:
                    rate = {"epoch": step / settings["steps_per_epoch"], "lr": trainer.optimizer.param_groups[0]["lr"]}
                    service = monitor.read() if monitor is not None else {}
                    tracker.log(step, rate | losses | meter.times(config.train.batch_size) | service)
                meter = _Meter()
            if scored:
                metrics = trainer.evaluate(run if rank == 0 else None, step, tracker)
            if kept:
                trainer.report(step, metrics if scored else {}, rank)
                meter.restart()
        if not metrics:
            # The run had been trained and scored to its end before, but not concluded.
            metrics = read_meta(step_folder(run, start)).metrics
        if tracker is not None:
            tracker.table("final", metrics)
    return {"final": metrics, "steps": step}


def _teachers(config: Config, settings: Mapping[str, Any], device: torch.device) -> tuple[Teachers, int]:
    """Where this worker's soft targets come from, and how many batches ahead they are asked for."""
    if settings["pool"] is not None:
        return PoolClient(settings["pool"]), config.teachers.prefetch
    if config.teachers.placement == "inline" and settings["teachers"]:
        # Not ahead: what they compute would take the step's threads, or its GPU, from it.
        return InlineTeachers(settings["teachers"], str(device)), 0
    return StoredTargets(), 1


class _Trainer:
    """The network and all that changes with it from step to step."""

    def __init__(self, config: Config, det_classes: list[str], seg_classes: list[str], device: torch.device) -> None:
        self.config = config
        self.device = device
        torch.manual_seed(config.train.seed)
        network = MultiTaskNet(config.model, det_classes, seg_classes)
        self.model: nn.Module = prepare_model(network)
        # prepare_model wraps nothing where there is one worker.
        self.network: MultiTaskNet = getattr(self.model, "module", self.model)
        self.network.config.pretrained = False
        self.optimizer = build_optimizer(self.network, config.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "float16")
        self.ema = Ema(self.network, config.optim)
        self.weights = term_weights(config)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        problem = verify(folder)
        if problem is not None:
            raise RuntimeError(f"{folder}: {problem}")
        state = torch.load(folder / STATE, map_location=self.device, weights_only=True)
        load_weights(self.network, state["model"], str(folder / STATE))
        load_weights(self.ema.model, state["ema"], str(folder / STATE))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def step(
        self, batch: Batch, distilled: Mapping, soft: Mapping[str, np.ndarray], step: int, workers: int
    ) -> dict[str, torch.Tensor]:
        """One optimiser step; each loss's share (see `total_loss`)."""
        optim = self.config.optim
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, optim.lr, optim.warmup_steps, self.config.train.steps)
        self.model.train()
        anchors = self.network.anchors(*batch["images"].shape[-2:])
        targets = to_tensors(soft, self.device)
        with autocast(self.device, self.config.train.precision):
            terms = loss_terms(self.model, batch, distilled, targets, self.config, anchors)
        total, shares = total_loss(terms, self.weights, workers)
        self.scaler.scale(total).backward()
        if optim.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network, step + 1)
        return shares

    def evaluate(self, run: Path | None, step: int, tracker: Tracker | None) -> dict[str, float]:
        """Score the moving average on the validation split; rank 0 (with a tracker) logs and draws."""
        if dist.is_initialized():
            # Workers' batch statistics differ between steps: rank 0's count.
            for value in self.ema.model.state_dict().values():
                dist.broadcast(value, 0)
        shard = ray.train.get_dataset_shard("val")
        network = self.network
        count = self.config.evaluate.pictures if run else 0
        samples = SamplePictures(network.det_classes, network.seg_classes, count)
        with autocast(self.device, self.config.train.precision):
            metrics = evaluate(self.ema.model, read_batches(shard, PREFETCH), self.config.evaluate, show=samples.add)
        if tracker is not None and run is not None:
            tracker.log(step, metrics)
            tracker.pictures(step, samples.write(run / "samples", step))
        return metrics

    def report(self, step: int, metrics: Mapping[str, float], rank: int) -> None:
        """Hand a checkpoint to Ray Train; all workers call it."""
        if rank != 0:
            ray.train.report({"step": step})
            return
        meta = Meta(
            step=step,
            model=self.network.config,
            det_classes=list(self.network.det_classes),
            seg_classes=list(self.network.seg_classes),
            size=self.config.data.eval_size,
            metrics=dict(metrics),
        )
        state = {
            "model": self.network.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), self.ema.model.state_dict(), state, meta)
            target = step_folder(Path(self.config.train.run), step)
            # What is left there is broken, else the run had gone on from it.
            shutil.rmtree(target, ignore_errors=True)
            ray.train.report(
                {"step": step}, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=target.name
            )
        prune(Path(self.config.train.run), target)


class _Meter:
    """Running sums between two log lines, kept on the device so that no step waits for them."""

    def __init__(self) -> None:
        self.steps = 0
        self.data_wait = self.teacher_wait = 0.0
        self.sums: dict[str, torch.Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Take the time from here: what came before was no training."""
        self.began = perf_counter()
        self.timed_from = self.steps

    def add(self, shares: Mapping[str, torch.Tensor], data_wait: float, teacher_wait: float) -> None:
        self.steps += 1
        self.data_wait += data_wait
        self.teacher_wait += teacher_wait
        for name, share in shares.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(share)) + share

    def times(self, batch_size: int) -> dict[str, float]:
        """A step's mean seconds, in all and waiting, and images a second."""
        seconds = (perf_counter() - self.began) / (self.steps - self.timed_from)
        return {
            "time/step_s": seconds,
            "time/data_wait_s": self.data_wait / self.steps,
            "time/teacher_wait_s": self.teacher_wait / self.steps,
            "throughput/images_per_s": batch_size / seconds,
        }

    def read(self, workers: int, device: torch.device) -> dict[str, float]:
        """Each loss over the global batches, a step's mean."""
        values = torch.stack(list(self.sums.values())).to(device) / self.steps
        if workers > 1:
            dist.all_reduce(values)
        return dict(zip(self.sums, values.tolist(), strict=True))


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


def _checkpoint_due(step: int, steps_per_epoch: float, every: int | None) -> bool:
    new_epoch = int(step / steps_per_epoch) > int((step - 1) / steps_per_epoch)
    return new_epoch or bool(every and step % every == 0)
