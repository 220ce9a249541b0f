"""Benchmark of a training on a data set that is far larger than the object store.

It measures the memory of every process, and the wait for data where an epoch begins.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from threading import Event, Thread

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.loading import light_training
from multas_ray.data.index import read_index
from multas_ray.data.schema import read_info
from multas_ray.data.writer import write_dataset
from multas_ray.formats import scenes
from multas_ray.ray_internals import object_store_use
from multas_ray.run_folder import read_metrics
from multas_ray.train.run import train

OBJECT_STORE = 512 * 2**20
"""Size of the object store in bytes."""
BATCH = 16
COPIES = 100
"""Number of shards of both data sets."""
LARGE, LARGE_SIDE, LARGE_STEPS = 600, 640, 800
"""Images of a shard, their side in pixels, steps of the training. 10 GB, of which more than 2 GB are read."""
SMALL, SMALL_SIDE, EPOCHS = BATCH, 128, 5
"""Images of a shard, their side in pixels, epochs of the training."""
EVERY_S = 1.0
"""Seconds between two samples of the memory."""
MB = 2**20


def repeat_scenes(path: Path, images: int, side: int) -> float:
    """Write a data set of COPIES shards with the same scenes under other ids, unless it is there.

    Args:
        path: folder of the data set.
        images: number of images of a shard.
        side: side of the images in pixels.

    Returns:
        Gigabytes of the training split.
    """
    train_folder = path / "train"
    if not (path / "dataset.json").exists():
        shutil.rmtree(path, ignore_errors=True)
        stage = path.with_name(f"{path.name}.stage")
        source = scenes.read(scenes.Options(train=images, val=2 * BATCH, size=side))
        write_dataset(stage, replace(source, name="repeated scenes"), overwrite=True)
        (shard,) = (stage / "train").iterdir()
        with pq.ParquetFile(shard) as parquet:
            groups = [parquet.read_row_group(number) for number in range(parquet.num_row_groups)]
        for copy in range(1, COPIES):
            _write_copy(stage / "train" / f"part-{copy:05d}.parquet", groups, copy)
        info = read_info(str(stage))
        info.splits["train"] = {mask: COPIES * rows for mask, rows in info.splits["train"].items()}
        (stage / "dataset.json").write_text(info.model_dump_json(indent=2))
        stage.rename(path)
    return sum(file.stat().st_size for file in train_folder.iterdir()) / 1e9


def _write_copy(file: Path, groups: Iterable[pa.Table], copy: int) -> None:
    """Write a shard of the same row groups, with the number of the copy in the ids."""
    writer = None
    for group in groups:
        names = [f"{name}.{copy}" for name in group["image_id"].to_pylist()]
        renamed = group.set_column(0, group.schema.field("image_id"), pa.array(names))
        writer = writer or pq.ParquetWriter(file, renamed.schema, compression="none", use_dictionary=False)
        writer.write_table(renamed)
    if writer is not None:
        writer.close()


@dataclass
class Samples:
    """Samples of the memory over a training, in MB."""

    unshared: dict[tuple[int, str], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    """Samples by id and name of a process: step of the training, and memory that the process shares with no other."""
    store: list[tuple[int, float]] = field(default_factory=list)
    """Samples of the object store: step of the training, and memory in use."""
    spilled: float = 0.0
    """Largest amount that the object store has written to disk."""


class Sampler:
    """Thread that samples the memory of this process, of Ray's and of the object store while a training runs."""

    def __init__(self, run: str) -> None:
        """Prepare the thread for a run folder."""
        self.run, self.samples, self.stopped = run, Samples(), Event()
        self.thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Samples:
        """Start to sample."""
        self.thread.start()
        return self.samples

    def __exit__(self, *_: object) -> None:
        """Stop to sample."""
        self.stopped.set()
        self.thread.join()

    def _watch(self) -> None:
        this = psutil.Process()
        (node,) = ray.nodes()
        while not self.stopped.wait(EVERY_S):
            lines = read_metrics(self.run)
            step = int(lines[-1]["step"]) if lines else 0
            for process in [this, *this.children(recursive=True)]:
                # The process may have ended meanwhile.
                with suppress(psutil.Error):
                    unshared = process.memory_full_info().uss / MB
                    self.samples.unshared[process.pid, process_name(process)].append((step, unshared))
            use = object_store_use(node)
            self.samples.store.append((step, use.used / MB))
            self.samples.spilled = max(self.samples.spilled, use.spilled / MB)


def process_name(process: psutil.Process) -> str:
    """Return the name of a process: that of its actor or task in Ray, else of its program."""
    title = re.match(r"ray::\w+(\(\S*\))?", " ".join(process.cmdline()))
    return title[0] if title else process.name()


def peaks(samples: list[tuple[int, float]], steps: int) -> tuple[float, float] | None:
    """Find the peaks of a process's memory in the first and in the second half of a training.

    The first tenth is left out, in which a process makes everything that it keeps, and the last steps, to which the
    samples of the evaluation at the end are counted too.

    Args:
        samples: steps of the training, and MB.
        steps: number of steps of the training.

    Returns:
        MB of both halves; None if the process did not live in both.
    """
    begin, middle, end = 0.1 * steps, 0.525 * steps, 0.95 * steps
    first = [value for step, value in samples if begin <= step < middle]
    second = [value for step, value in samples if middle <= step < end]
    return (max(first), max(second)) if first and second else None


def train_on_large(data: Path, run: Path) -> tuple[Samples, float]:
    """Train on the large data set.

    Args:
        data: folder of the data set.
        run: run folder.

    Returns:
        Samples of the memory, and gigabytes of images read.
    """
    config = light_training(data, run, LARGE_STEPS, log_every=5)
    with Sampler(config.train.run) as samples:
        train(config)
    index = read_index(str(data), "train")
    size = sum(file.stat().st_size for file in (data / "train").iterdir()) / len(index)
    return samples, LARGE_STEPS * BATCH * size / 1e9


def waits_at_epochs(data: Path, run: Path) -> dict[str, float]:
    """Measure the waits for data of a training of EPOCHS epochs.

    Args:
        data: folder of the small data set.
        run: run folder.

    Returns:
        Seconds of the longest wait for the `first batch of an epoch` (after the first epoch), of the median wait for
        `any batch`, and of the median `step`.
    """
    epoch = COPIES * SMALL // BATCH
    config = light_training(data, run, EPOCHS * epoch, log_every=1)
    train(config)
    lines = [line for line in read_metrics(config.train.run) if "time/step_s" in line]
    starts = [line["time/data_wait_s"] for line in lines if line["step"] > epoch and line["step"] % epoch == 1]
    return {
        "first batch of an epoch": max(starts),
        "any batch": median(line["time/data_wait_s"] for line in lines),
        "step": median(line["time/step_s"] for line in lines),
    }
