"""Benchmark of Ray's overhead: the job against a bare PyTorch loop over the same batches, two workers against one."""

import multiprocessing
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import ray

from multas_ray.config import AugmentConfig, Config
from multas_ray.config_file import parse_config
from multas_ray.data.batch import TrainBatch
from multas_ray.data.plan import Plan
from multas_ray.data.sources import read_sources
from multas_ray.ray_setup import data_tasks, start_ray
from multas_ray.run_folder import read_metrics
from multas_ray.train.run import plan_run, train

BATCH = 8
"""Number of images of a worker's batch."""
WARMUP, STEPS, ROUNDS = 6, 12, 4


def configure(data: Path, run: Path, workers: int, overrides: Sequence[str] = ()) -> Config:
    """Configure the job: default preset, ResNet-18, 320 pixels, float32, one thread a worker.

    Args:
        data: folder of the data set.
        run: run folder.
        workers: number of workers.
        overrides: configuration values by dotted path.
    """
    tree: dict[str, Any] = {
        "data": {"path": str(data), "size": 320},
        "model": {"backbone": "resnet18", "pretrained": False},
        "train": {
            **{"run": str(run), "steps": WARMUP + STEPS, "batch_size": BATCH * workers, "workers": workers},
            **{"threads": 1, "log_every_steps": WARMUP, "precision": "float32"},
        },
        "evaluate": {"pictures": 0},
        "tracking": {"wandb": "disabled"},
    }
    return parse_config(tree, overrides)


def job_rate(config: Config) -> float:
    """Measure the images a second of the job's training steps after the warm-up.

    Ray is started and stopped here: none may run beside the bare loops.
    """
    # A finished run is not run again.
    shutil.rmtree(config.train.run, ignore_errors=True)
    start_ray(8)
    train(config)
    ray.shutdown()
    lines = [line for line in read_metrics(config.train.run) if "time/step_s" in line and line["step"] > WARMUP]
    return float(config.train.batch_size * len(lines) / sum(line["time/step_s"] for line in lines))


def bare_rate(config: Config, processes: int, loaders: int = 0) -> float:
    """Measure the images a second of bare loops that run side by side, each in a process of its own; their sum.

    Args:
        config: configuration of the job.
        processes: number of loops.
        loaders: number of processes that decode and augment for each loop while it trains; 0: its batches are in
            memory before it begins.
    """
    context = multiprocessing.get_context("spawn")
    ready, rates = context.Barrier(processes), context.Queue()
    loops = [context.Process(target=_bare_loop, args=(config, loaders, ready, rates)) for _ in range(processes)]
    for loop in loops:
        loop.start()
    total = sum(rates.get(timeout=600) for _ in loops)
    for loop in loops:
        loop.join()
    return float(total)


def _bare_loop(config: Config, loaders: int, ready: Any, rates: Any) -> None:
    """Train in a plain loop, and report its images a second.

    Args:
        config: configuration of the job.
        loaders: see `bare_rate`.
        ready: barrier of all loops before the measured steps.
        rates: queue for the images a second.
    """
    import torch
    from torch.utils.data import DataLoader

    from multas_ray.train.trainer import Trainer

    torch.set_num_threads(config.train.threads)
    info = read_sources(config.data).info
    plan = plan_run(config, {})
    parts: Any = _Parts(plan, config.data.augment)
    batches: Any = DataLoader(parts, batch_size=None, num_workers=loaders) if loaders else list(parts)
    trainer = Trainer(config, info.classes, torch.device("cpu"))
    for step, batch in enumerate(batches):
        if step == WARMUP:
            ready.wait()
            began = perf_counter()
        trainer.step(batch, {}, step, 1)
    rates.put(config.train.batch_size * STEPS / (perf_counter() - began))


class _Parts:
    """Batches of a plan, each made when it is asked for."""

    def __init__(self, plan: Plan, augment: AugmentConfig) -> None:
        """Hold the plan, and the configuration of the augmentation."""
        self.plan, self.augment = plan, augment

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.plan.steps

    def __getitem__(self, step: int) -> TrainBatch:
        """Make the batch of a step.

        Raises:
            IndexError: the plan has no such step.
        """
        if step >= self.plan.steps:
            raise IndexError(step)
        # Imported here: Ray's processes unpickle this module without PyTorch.
        from multas_ray.data.collate import make_train_batch

        return make_train_batch(self.plan.index, self.plan.part(step, 0, 1), self.augment)


def compare_rates(data: Path, folder: Path, overrides: Sequence[str] = ()) -> dict[str, list[float]]:
    """Measure bare loops and the job, one and two of them, in alternating rounds.

    Every other round goes backwards, so that a machine that gets slower or faster favours none of them.

    Args:
        data: folder of the data set.
        folder: parent of the run folders.
        overrides: configuration values by dotted path.

    Returns:
        Images a second of each round, in this order.
    """
    one, two = (configure(data, folder / f"workers{workers}", workers, overrides) for workers in (1, 2))
    contestants = {
        "bare loop": lambda: bare_rate(one, 1),
        "2 bare loops": lambda: bare_rate(one, 2),
        "2 bare loops that load": lambda: bare_rate(one, 2, max(1, data_tasks() // 2)),
        "job, 2 workers": lambda: job_rate(two),
        "job, 1 worker": lambda: job_rate(one),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(ROUNDS):
        for name in [*contestants][:: -1 if number % 2 else 1]:
            rates[name].append(contestants[name]())
        news = ", ".join(f"{name} {values[-1]:.2f}" for name, values in rates.items())
        print(f"round {number + 1} [images/s]: {news}", flush=True)
    return rates


def overhead_figures(rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Compute ratios of the rates.

    They are medians of the ratios within a round, because the machine's speed changes from round to round.

    Args:
        rates: result of `compare_rates`.

    Returns:
        `ratio_to_bare_loop` of the job with one worker, `two_workers_speedup` over one, `two_workers_of_ceiling`: this
        speed-up as a fraction of that of two bare loops with batches in memory, and `two_workers_of_loading_loops`:
        images a second as a fraction of those of two bare loops that load as many images in processes of their own.
    """
    rounds = [
        {
            "ratio_to_bare_loop": job / bare,
            "two_workers_speedup": job_two / job,
            "two_workers_of_ceiling": (job_two / job) / (bare_two / bare),
            "two_workers_of_loading_loops": job_two / loading_two,
        }
        for bare, bare_two, loading_two, job_two, job in zip(*rates.values(), strict=True)
    ]
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}
