"""A training job that writes down which images each step saw: python -m tests.train.counting CONFIG [path=value ...]"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.cloudpickle

import multas_ray.train.run as run
from multas_ray.config_file import load_config
from multas_ray.job import run_job
from multas_ray.train.loop import train_worker


def counting_worker(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`train_worker`, which adds a line to `<run>/seen/<process>` for every step."""
    import multas_ray.train.loop as loop

    check = loop.check_position
    folder = Path(settings["config"]["train"]["run"]) / "seen"
    folder.mkdir(exist_ok=True)

    def note(batch: dict, step: int, rank: int) -> None:
        check(batch, step, rank)
        line = {
            "step": step,
            "rank": rank,
            "ids": [i.decode() for i in batch["ids"]],
            "epochs": batch["epochs"].tolist(),
        }
        with (folder / str(os.getpid())).open("a") as file:
            file.write(json.dumps(line) + "\n")

    loop.check_position = note
    try:
        return train_worker(settings)
    finally:
        loop.check_position = check


def seen(folder: str | Path) -> dict[int, list[tuple[str, int]]]:
    """Image and epoch of everything that each step saw. A step that was trained again, after a failure, must have seen
    the same again."""
    attempts: dict[int, dict[tuple[int, int], list[tuple[str, int]]]] = {}
    for number, file in enumerate(sorted((Path(folder) / "seen").iterdir(), key=lambda file: file.stat().st_mtime)):
        for line in map(json.loads, file.read_text().splitlines()):
            rows = list(zip(line["ids"], line["epochs"], strict=True))
            attempts.setdefault(line["step"], {})[number, line["rank"]] = rows
    steps = {}
    for step, parts in attempts.items():
        sets = {frozenset(part) for part in parts.values()}
        rows = frozenset().union(*sets)
        # Each row comes in exactly one part of every attempt: parts of two attempts may differ, their union does not.
        steps[step] = sorted(rows)
    return steps


if __name__ == "__main__":
    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    run.train_worker = counting_worker
    run_job(lambda: run.train(load_config(sys.argv[1], sys.argv[2:])) and None)
