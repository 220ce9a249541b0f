"""Partial annotation of a fully annotated source: a seeded, mutually exclusive draw of which row keeps which task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, get_args

import numpy as np

from multas_ray.config import Task
from multas_ray.data.reject import Reject
from multas_ray.errors import UserError

if TYPE_CHECKING:
    from multas_ray.data.row import Row

TASKS: tuple[Task, ...] = get_args(Task)


def parse_fractions(text: str) -> dict[Task, float]:
    """Read `det=0.5,seg=0.5`.

    Raises:
        UserError: another task, not numbers in 0..1, or a sum above 1.
    """
    fractions: dict[Task, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        task = next((task for task in TASKS if task == name.strip()), None)
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if task is None or task in fractions or not 0 <= share <= 1:
            raise UserError(f"--partial {text}: write it as det=0.5,seg=0.5 with fractions of 0 to 1")
        fractions[task] = share
    _check(fractions)
    return fractions


def draw_partial(ids: Iterable[str], fractions: Mapping[Task, float], seed: int) -> dict[str, Task | None]:
    """The one task that each image keeps, None for those that keep neither.

    A function of the set of ids and the seed alone: their order does not matter. Of n ids, each task gets its fraction
    of n, rounded.

    Raises:
        UserError: the fractions add up to more than 1.
    """
    _check(fractions)
    ordered = sorted(set(ids))
    order = np.random.default_rng(seed).permutation(len(ordered))
    kept: dict[str, Task | None] = dict.fromkeys(ordered)
    start, share = 0, 0.0
    for task in TASKS:
        share += fractions.get(task, 0.0)
        end = round(share * len(ordered))
        kept.update((ordered[i], task) for i in order[start:end])
        start = end
    return kept


def apply_partial(rows: Iterable[Row | Reject], kept: Mapping[str, Task | None]) -> Iterator[Row | Reject]:
    """Remove from every row the annotation of the tasks it gives up."""
    for row in rows:
        yield row if isinstance(row, Reject) else row.only(kept[row.image_id])


def _check(fractions: Mapping[Task, float]) -> None:
    total = sum(fractions.values())
    # 0.7 + 0.3 and their like may miss 1 by a rounding error.
    if total > 1 + 1e-9:
        raise UserError(f"--partial: the fractions add up to {total:g}, but no image keeps two tasks: at most 1")
