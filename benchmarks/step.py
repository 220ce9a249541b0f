"""Benchmark of the training step of the default student on a CPU: in each precision, and against another checkout.

Each variant has a process of its own, and they take turns, so that a machine that gets slower favours none of them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, STEPS = 7, 6
"""Turns of each variant, and steps a turn."""
SIZE, BATCH = 128, 16


class Variant(NamedTuple):
    """What is measured."""

    name: str
    checkout: Path
    """Folder whose `multas_ray` is imported."""
    precision: str


class StepTimes(NamedTuple):
    """Milliseconds of a step: medians over the rounds."""

    whole: float
    forward: float
    """Forward pass and losses; the rest is the backward pass, optimiser and moving average."""
    images_per_s: float


def variants(precisions: Sequence[str], against: Path | None) -> list[Variant]:
    """List this checkout in each precision, and after each the other checkout, if one is named."""
    checkouts = {"": ROOT} | ({f" of {against}": against.resolve()} if against else {})
    return [Variant(precision + name, path, precision) for precision in precisions for name, path in checkouts.items()]


def measure_steps(data: Path, chosen: Sequence[Variant]) -> dict[str, StepTimes]:
    """Measure the steps of variants in alternating rounds.

    Args:
        data: folder of a data set with rows for each task.
        chosen: variants, by different names.
    """
    processes = {variant.name: _start(data, variant) for variant in chosen}
    rounds: dict[str, list[list[float]]] = {name: [] for name in processes}
    try:
        for _ in range(ROUNDS):
            for name, process in processes.items():
                rounds[name].append(_turn(process))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    times = {}
    for name, seconds in rounds.items():
        whole, forward = (1000 * median(column) for column in zip(*seconds, strict=True))
        times[name] = StepTimes(whole, forward, 1000 * BATCH / whole)
    return times


def _start(data: Path, variant: Variant) -> "subprocess.Popen[str]":
    """Start the process of a variant, which waits for its turns."""
    # A script's own folder comes first on the path; the checkout comes before what is installed.
    environment = os.environ | {"PYTHONPATH": str(variant.checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", __file__, str(data), variant.precision]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _turn(process: "subprocess.Popen[str]") -> list[float]:
    """Let a process take its turn; return the seconds of a step, and of its forward pass and losses."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a process of the benchmark ended before its turn; its error stands above")
    values: list[float] = json.loads(line)
    return values


def configuration(data: Path, precision: str) -> dict[str, Any]:
    """Return the configuration of the default student: both tasks, half of a batch annotated for each."""
    return {
        "data": {"path": str(data), "size": SIZE, "mixing": {"det": BATCH // 2, "seg": BATCH // 2}},
        "model": {"backbone": "efficientnet_lite0", "pretrained": False, "width": 96, "anchor_base": 16},
        "train": {"run": "unused", "steps": 2 * STEPS, "batch_size": BATCH, "precision": precision, "threads": 1},
    }


def main() -> None:
    """Take turns, one for every line of standard input: STEPS steps each, over batches in memory."""
    from time import perf_counter

    import torch

    from multas_ray.config_file import parse_config
    from multas_ray.data.collate import make_train_batch
    from multas_ray.data.sources import read_sources
    from multas_ray.train.run import plan_run
    from multas_ray.train.trainer import Trainer

    torch.set_num_threads(1)
    config = parse_config(configuration(Path(sys.argv[1]), sys.argv[2]))
    plan = plan_run(config, {})
    batches = [make_train_batch(plan.index, plan.part(step, 0, 1), config.data.augment) for step in range(STEPS)]
    trainer = Trainer(config, read_sources(config.data).info.classes, torch.device("cpu"))
    for step, batch in enumerate(batches[:3]):
        trainer.step(batch, {}, step, 1)
    for _ in sys.stdin:
        began, forward = perf_counter(), []
        for step, batch in enumerate(batches):
            forward.append(trainer.step(batch, {}, step, 1).forward_s)
        print(json.dumps([(perf_counter() - began) / len(batches), median(forward)]), flush=True)


if __name__ == "__main__":
    main()
