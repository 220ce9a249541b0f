"""Benchmark of the data stream against a plain PyTorch DataLoader.

Both have the same rows, transforms, batches and number of processes.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from torch.utils.data import DataLoader, Dataset

from multas_ray.config import TASK_MASKS, AugmentConfig, Config, Resources
from multas_ray.config_file import parse_config
from multas_ray.data.batch import TrainBatch
from multas_ray.data.collate import make_train_batch
from multas_ray.data.index import Index, read_index
from multas_ray.data.packing import pack
from multas_ray.data.plan import Plan, lay_plan, mix
from multas_ray.data.read import decode, read_row
from multas_ray.data.stream import PlannedStream, read_batches, stream, stream_options
from multas_ray.data.transforms import Augment, Sample
from multas_ray.errors import RunError
from multas_ray.run_folder import read_metrics
from multas_ray.storage import StoragePath
from multas_ray.train.run import train

SIZE, BATCH, PROCESSES = 320, 16, 2
WARMUP_S, ROUND_S, ROUNDS = 5.0, 20.0, 5
STAGE_IMAGES = 256
"""Largest number of images of which the parts of the work are measured."""


class PlainDataset(Dataset[Sample]):
    """Data set as one writes it without this project: all rows in memory, decoded and augmented one by one."""

    def __init__(self, index: Index, augment: AugmentConfig) -> None:
        """Read all rows of a split into memory."""
        root = StoragePath(index.path)
        tables = [pq.read_table((root / file).path, filesystem=root.filesystem) for file in index.files]
        self.rows = [row for table in tables for row in table.to_pylist()]
        self.classes = index.classes
        self.augment = Augment(augment)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, number: int) -> Sample:
        """Decode and augment a row, with a random seed."""
        sample = decode(self.rows[number], self.classes)
        seed = int(mix(0, int(torch.randint(2**31, ())), number))
        return self.augment(sample, SIZE, seed)


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack images and masks; boxes stay a list."""
    return {
        "images": torch.stack([sample["image"] for sample in samples]),
        "masks": torch.stack([torch.from_numpy(s["mask"]) for s in samples if "mask" in s] or [torch.zeros(0)]),
        "boxes": [(sample["boxes"], sample["labels"], sample["difficult"]) for sample in samples if "boxes" in sample],
    }


def plain_batches(dataset: PlainDataset) -> Iterator[int]:
    """Load batches by a DataLoader, epoch after epoch; yield the number of images of each."""
    loader: DataLoader[Sample] = DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=PROCESSES,
        collate_fn=collate,
        persistent_workers=True,
        worker_init_fn=_one_thread,
    )
    while True:
        for batch in loader:
            yield len(batch["images"])


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def stream_batches(plan: Plan, augment: AugmentConfig) -> Iterator[int]:
    """Load batches of the training stream as a worker does; yield the number of images of each."""
    dataset = stream(PlannedStream(plan, augment=augment), 1, parallel=PROCESSES, resources=Resources(cpu=0.25))
    dataset.context.execution_options = stream_options(plan, 1, PROCESSES)
    (shard,) = dataset.streaming_split(1, equal=True)
    for batch in read_batches(shard):
        yield len(batch.images)


def images_per_s(start: Callable[[], Iterator[int]]) -> float:
    """Measure the images a second over a round of ROUND_S seconds, after a warm-up of WARMUP_S.

    Args:
        start: function that starts to load, and yields the number of images of each batch.
    """
    batches = start()
    began = perf_counter()
    while perf_counter() - began < WARMUP_S:
        next(batches)
    images, began = 0, perf_counter()
    while (seconds := perf_counter() - began) < ROUND_S:
        images += next(batches)
    del batches
    return images / seconds


def compare_loading(path: str) -> dict[str, list[float]]:
    """Measure the stream and the DataLoader in alternating rounds.

    Args:
        path: folder of a data set.

    Returns:
        Images a second of each round, under `stream` and `dataloader`.

    Raises:
        RunError: Ray's workers have another priority than this process, so that nothing can be compared.
    """
    index = read_index(path, "train")
    augment = AugmentConfig()
    plan = lay_plan(
        index, usable=TASK_MASKS, mixing=None, batch_size=BATCH, steps=100_000, seed=0, sizes=[SIZE], window=16
    )
    dataset = PlainDataset(index, augment)
    # At a lower priority, Ray's processes would be outrun by those of the DataLoader.
    nice = ray.get(ray.remote(num_cpus=0)(lambda: os.nice(0)).remote())
    if nice != os.nice(0):
        raise RunError(
            f"Ray runs its workers at niceness {nice}, this process has {os.nice(0)}: set RAY_worker_niceness=0"
        )
    contestants: dict[str, Callable[[], Iterator[int]]] = {
        "stream": lambda: stream_batches(plan, augment),
        "dataloader": lambda: plain_batches(dataset),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(ROUNDS):
        for name, start in contestants.items():
            rates[name].append(images_per_s(start))
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {r[-1]:.0f} images/s" for name, r in rates.items()), flush=True
        )
    return rates


def ratio(rates: dict[str, list[float]]) -> float:
    """Return the ratio of the stream's median rate to the DataLoader's."""
    return median(rates["stream"]) / median(rates["dataloader"])


def light_training(data: Path, run: Path, steps: int, log_every: int) -> Config:
    """Configure the lightest training of the benchmarks: EfficientNet-Lite0, 128 px.

    The folder of an earlier run is deleted, since a finished run is not run again.

    Args:
        data: folder of the data set.
        run: run folder.
        steps: number of steps.
        log_every: number of steps between two lines of metrics.
    """
    tree: dict[str, Any] = {
        "data": {"path": str(data), "size": 128},
        "model": {"backbone": "efficientnet_lite0", "pretrained": False, "width": 96, "anchor_base": 16},
        "train": {
            **{"run": str(run), "steps": steps, "batch_size": BATCH, "log_every_steps": log_every},
        },
        "evaluate": {"pictures": 0},
        "tracking": {"wandb": "disabled"},
    }
    shutil.rmtree(run, ignore_errors=True)
    return parse_config(tree)


def train_data_wait(data: Path, folder: Path) -> float:
    """Measure the fraction of a step that a training on the CPU waits for its data, after a warm-up.

    Args:
        data: folder of the data set.
        folder: parent of the run folder.
    """
    config = light_training(data, folder / "train", steps=60, log_every=20)
    train(config)
    lines = [line for line in read_metrics(config.train.run) if "time/step_s" in line][1:]
    waits, seconds = (sum(line[f"time/{name}_s"] for line in lines) for name in ("data_wait", "step"))
    return float(waits / seconds)


def stage_seconds(path: str) -> dict[str, float]:
    """Measure the seconds an image of each part of the work in one process, without Ray: the best of ROUNDS rounds.

    Args:
        path: folder of a data set.
    """
    index = read_index(path, "train")
    augment, plain = Augment(AugmentConfig()), Augment(AugmentConfig(photometric=False))
    rows = np.random.default_rng(0).permutation(len(index))[:STAGE_IMAGES]
    images = len(rows)
    plan = lay_plan(index, usable=TASK_MASKS, mixing=None, batch_size=BATCH, steps=99, seed=0, sizes=[SIZE], window=16)
    parts = [plan.part(step, 0, 1) for step in range(images // BATCH)]
    batches: list[TrainBatch] = []
    stored = [read_row(index, int(row)) for row in rows]
    samples = [decode(row, index.classes) for row in stored]

    def make_batches() -> None:
        batches[:] = [make_train_batch(index, part, AugmentConfig()) for part in parts]

    stages: dict[str, Callable[[], Any]] = {
        "read": lambda: [read_row(index, int(row)) for row in rows],
        "decode the annotation": lambda: [decode(row, index.classes) for row in stored],
        "decode the whole image (for comparison)": lambda: [sample["image"].pixels() for sample in samples],
        "decode what is seen, and resize": lambda: [plain(sample, SIZE, seed) for seed, sample in enumerate(samples)],
        "the same with colours": lambda: [augment(sample, SIZE, seed) for seed, sample in enumerate(samples)],
        "all of a batch": make_batches,
        "pack": lambda: [pack([batch]) for batch in batches],
    }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(ROUNDS):
        for name, work in stages.items():
            began = perf_counter()
            work()
            seconds[name].append((perf_counter() - began) / images)
    return {name: min(values) for name, values in seconds.items()}
