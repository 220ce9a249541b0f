"""Fair timing on a noisy machine, and where the figures go."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter

from multas_ray.documents import read_json
from multas_ray.errors import UserError

ROUNDS = 5


def alternate(variants: Mapping[str, Callable[[], object]], repeats: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of one call of each variant: the median over rounds, in each of which every variant has its turn.

    Args:
        variants: what to call; each is called once beforehand.
        repeats: calls in a row that are timed together.
        rounds: turns of each variant.
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
    """Put a benchmark's figures into the folder's benchmark.json, beside those of other benchmarks."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "benchmark.json"
    known = read_json(file) if file.exists() else {}
    if not isinstance(known, dict):
        raise UserError(f"{file}: not figures of benchmarks; delete it")
    file.write_text(json.dumps(known | {bench: dict(figures)}, indent=1) + "\n")
    return file
