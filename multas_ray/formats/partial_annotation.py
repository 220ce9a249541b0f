"""Partial annotation of a fully annotated source: a seeded, mutually exclusive draw of which image keeps which task."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from multas_ray.config import TASKS, Task
from multas_ray.data.reject import Reject
from multas_ray.errors import UserError
from multas_ray.formats.flags import Fraction, FromText
from multas_ray.formats.source import Item, Options, Split

if TYPE_CHECKING:
    from multas_ray.data.row import Row


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


class PartialOptions(Options):
    """The options of a format whose images may keep the annotation of one task only."""

    partial: Annotated[dict[Task, Fraction], FromText(parse_fractions)] | None = None
    """e.g. det=0.5,seg=0.5: images that keep only this task"""
    seed: int = Field(0, ge=0)
    """of what is drawn at random"""


def draw_partial(ids: Iterable[str], fractions: Mapping[Task, float], seed: int) -> dict[str, Task | None]:
    """Draw the one task that each image keeps, None for those that keep neither.

    A function of the set of ids and the seed alone: their order does not matter. Of n ids, each task gets its fraction
    of n, rounded.

    Raises:
        UserError: the fractions add up to more than 1.
    """
    _check(fractions)
    ordered = sorted(set(ids))
    order = np.random.default_rng(seed).permutation(len(ordered))
    tasks: dict[str, Task | None] = dict.fromkeys(ordered)
    start, share = 0, 0.0
    for task in TASKS:
        share += fractions.get(task, 0.0)
        end = round(share * len(ordered))
        tasks.update((ordered[i], task) for i in order[start:end])
        start = end
    return tasks


def partially_annotated(
    split: Split[Item], ids: Sequence[str], fractions: Mapping[Task, float], seed: int
) -> Split[tuple[Item, Task | None]]:
    """The split whose images keep the annotation of the task that is drawn for them.

    Args:
        split: fully annotated.
        ids: the image id of each of its items.
        fractions: share of the images that keep each task, 0..1.
        seed: of the draw.

    Raises:
        UserError: as `draw_partial`.
    """
    tasks = draw_partial(ids, fractions, seed)
    items = [(item, tasks[image_id]) for item, image_id in zip(split.items, ids, strict=True)]
    return Split(items, partial(_read_task, split.read))


def _read_task(
    read: "Callable[[Item], Row | Reject | None]", item: "tuple[Item, Task | None]"
) -> "Row | Reject | None":
    whole, task = item
    row = read(whole)
    return row if row is None or isinstance(row, Reject) else row.only(task)


def _check(fractions: Mapping[Task, float]) -> None:
    total = sum(fractions.values())
    # 0.7 + 0.3 and their like may miss 1 by a rounding error.
    if total > 1 + 1e-9:
        raise UserError(f"--partial: the fractions add up to {total:g}, but no image keeps two tasks: at most 1")
