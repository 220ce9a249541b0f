"""Fair timing on a noisy machine, and the file of all figures."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter

from multas_ray.documents import read_json
from multas_ray.errors import UserError

ROUNDS = 5


def alternate(variants: Mapping[str, Callable[[], object]], repeats: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Time variants in alternating rounds, in each of which every variant has its turn.

    Args:
        variants: functions to time; each is called once beforehand.
        repeats: number of calls in a row that are timed together.
        rounds: number of turns of each variant.

    Returns:
        Seconds of one call of each variant: the median over the rounds.
    """
    for call in variants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            began = perf_counter()
            for _ in range(repeats):
                call()
            seconds[name].append((perf_counter() - began) / repeats)
    return {name: median(times) for name, times in seconds.items()}


def write_figures(folder: Path, bench: str, figures: Mapping[str, float]) -> Path:
    """Write a benchmark's figures to the folder's benchmark.json, beside those of other benchmarks.

    Args:
        folder: folder of the file; made if there is none.
        bench: name of the benchmark.
        figures: figures by name.

    Returns:
        The file.

    Raises:
        UserError: the file has something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "benchmark.json"
    content = read_json(file) if file.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"{file}: not figures of benchmarks; delete it")
    file.write_text(json.dumps(content | {bench: dict(figures)}, indent=1) + "\n")
    return file
