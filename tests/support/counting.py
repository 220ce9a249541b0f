"""A training job that logs which images each step saw: python -m tests.support.counting CONFIG [path=value ...]"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray.cloudpickle

import multas_ray.train.run as run
from multas_ray.cli import run_job
from multas_ray.config_file import load_config
from multas_ray.data.batch import TrainBatch
from multas_ray.train.loop import WorkerJob, train_worker


def counting_worker(job: WorkerJob) -> dict[str, Any]:
    """`train_worker`, which adds a line to `<run>/seen/<process>` for every step."""
    import multas_ray.train.loop as loop

    check = loop.check_position
    folder = Path(job.config.train.run) / "seen"
    folder.mkdir(exist_ok=True)

    def note(batch: TrainBatch, step: int, rank: int) -> None:
        check(batch, step, rank)
        line = {
            "step": step,
            "rank": rank,
            "ids": list(batch.ids),
            "epochs": batch.part.epochs.tolist(),
        }
        with (folder / str(os.getpid())).open("a") as file:
            file.write(json.dumps(line) + "\n")

    loop.check_position = note
    try:
        return train_worker(job)
    finally:
        loop.check_position = check


def seen(folder: str | Path) -> dict[int, set[tuple[str, int]]]:
    """Image and epoch of everything that each step saw, in all attempts: if it saw something else when it was trained
    again after a failure, it has too much, and other steps have it as well."""
    steps: dict[int, set[tuple[str, int]]] = {}
    for file in (Path(folder) / "seen").iterdir():
        for line in map(json.loads, file.read_text().splitlines()):
            steps.setdefault(line["step"], set()).update(zip(line["ids"], line["epochs"], strict=True))
    return steps


if __name__ == "__main__":
    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    run.train_worker = counting_worker
    run_job(lambda: run.train(load_config(sys.argv[1], sys.argv[2:])) and None)
