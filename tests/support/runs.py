"""Training runs: what they left, what they saw, and a folder that holds one."""

import time
from collections import Counter
from pathlib import Path

from multas_ray.checkpoint.folder import Meta, step_folder
from multas_ray.checkpoint.weights import write_checkpoint
from multas_ray.data.schema import read_info
from multas_ray.model.network import MultiTaskNet
from multas_ray.run_folder import read_metrics
from tests.support.counting import seen
from tests.support.processes import PATIENCE


def losses(run: str | Path, name: str = "loss/total") -> list[float]:
    """A loss of every step that was logged."""
    return [line[name] for line in read_metrics(Path(run)) if name in line]


def wait_for_step(run: str, step: int, seconds: float = PATIENCE) -> None:
    """Wait until a run has logged a step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(line["step"] >= step for line in read_metrics(Path(run))):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{run} has not reached step {step}")


def assert_whole_epochs(run: str, steps: int, rows: int) -> None:
    """Every step was trained, and every finished epoch holds every row once."""
    steps_seen = seen(run)
    assert sorted(steps_seen) == list(range(steps))
    counts = Counter(row for step in steps_seen.values() for row in step)
    assert set(counts.values()) == {1}
    per_epoch = Counter(epoch for _, epoch in counts)
    assert [per_epoch[epoch] for epoch in range(max(per_epoch))] == [rows] * max(per_epoch)


def add_checkpoint(config, step: int = 2) -> Path:
    """Write one of a run, with random weights."""
    info = read_info(config.data.path)
    network = MultiTaskNet(config.model, info.classes)
    classes = {"det_classes": info.det_classes, "seg_classes": info.seg_classes}
    meta = Meta(step=step, model=config.model, size=64, metrics={}, **classes)
    folder = step_folder(config.train.run, step)
    write_checkpoint(folder, network.state_dict(), {}, meta)
    return Path(folder)
