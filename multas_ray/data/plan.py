"""Plan of a run: the rows of each batch, and their augmentation. Pure functions of seed and step, without Ray.

Each step's batch can be computed independently, so that a run resumes at any step, with any number of workers, and any
task of the data stream can compute its own chunk.
"""

from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from cachetools import LRUCache

from multas_ray.config import TASK_MASKS, TaskMask
from multas_ray.data.index import Index
from multas_ray.data.row_sets import RowSet
from multas_ray.errors import UserError


@dataclass(frozen=True)
class Part:
    """Share of one worker in one global batch."""

    step: int
    rank: int
    size: int
    """Side of the square images in pixels."""
    rows: np.ndarray
    """(b,) int64: rows of the index."""
    epochs: np.ndarray
    """(b,) int64: number of times that the row has been seen before."""
    views: np.ndarray
    """(b,) int64: number of the row's augmentation; without stored targets, that of the epoch."""
    seeds: np.ndarray
    """(b,) uint64: seeds of the rows' augmentation."""

    def at(self, places: Sequence[int]) -> "Part":
        """Select the rows at some places of the part, 0..b-1."""
        chosen = np.array(places, np.int64)
        columns = {name: getattr(self, name)[chosen] for name in ("rows", "epochs", "views", "seeds")}
        return replace(self, **columns)


@dataclass(frozen=True)
class Group:
    """Rows with a fixed number of places in each batch and epochs of their own."""

    rows: RowSet
    """n rows of the index."""
    starts: np.ndarray
    """(g + 1,) int64: place in `rows` at which each row group begins, and n."""
    quota: int
    """Number of these rows in every batch."""


@dataclass(frozen=True)
class Replay:
    """Augmentations for which soft targets are stored: some views of each row, one an epoch, in turns."""

    seed: int
    views: int


Orders = MutableMapping[int, MutableMapping[int, "EpochOrder"]]
"""Orders of a plan's groups, by the numbers of group and epoch."""


def _no_orders() -> Orders:
    """Make a cache of the last two orders of each group: a batch may begin in one epoch and end in the next."""
    return defaultdict(partial(LRUCache, 2))


@dataclass(frozen=True, eq=False)
class Plan:
    """Batches of a training run.

    Each group's rows form an endless sequence, epoch after epoch, in which every epoch holds each row once; a batch
    takes the next `quota` rows of each group. An epoch's order is a shuffle of the row groups (of the files), then of
    the rows within windows of some row groups: global, yet with reads that stay sequential.
    """

    index: Index
    groups: tuple[Group, ...]
    seed: int
    steps: int
    sizes: tuple[int, ...]
    window: int
    """Number of row groups whose rows are shuffled together."""
    multi_scale_steps: int
    """Number of steps with random sizes; later steps have the last size."""
    replay: Replay | None = None
    """Augmentations to repeat; None for those of this run's seed."""
    _orders: Orders = field(default_factory=_no_orders, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache of orders out of the pickle, which is sent to every task of the stream."""
        return self.__dict__ | {"_orders": _no_orders()}

    @property
    def batch_size(self) -> int:
        """Number of rows of a global batch."""
        return sum(group.quota for group in self.groups)

    @property
    def largest(self) -> int:
        """Side of the largest images in pixels."""
        return max(self.sizes)

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps in which every row is seen at least once."""
        return max(len(group.rows) / group.quota for group in self.groups)

    def part(self, step: int, rank: int, workers: int) -> Part:
        """Compute the part of worker `rank` of `workers` in the batch of a step.

        The part has a run of consecutive rows of every group, so that it needs few reads. The parts of a step differ in
        size by at most one row.
        """
        columns = []
        before = 0
        for number, group in enumerate(self.groups):
            # Dealt out like cards, group after group; whoever got one row more comes last in the next group.
            shares = [len(range((turn - before) % workers, group.quota, workers)) for turn in range(workers)]
            first = step * group.quota + sum(shares[:rank])
            columns.append(self._take(number, np.arange(first, first + shares[rank])))
            before += group.quota
        rows, epochs = (np.concatenate(column) for column in zip(*columns, strict=True))
        drawn = int(mix(self.seed, step, 0x512E) % np.uint64(len(self.sizes)))
        size = self.sizes[drawn] if step < self.multi_scale_steps else self.sizes[-1]
        seed, views = (self.seed, epochs) if self.replay is None else (self.replay.seed, epochs % self.replay.views)
        return Part(step, rank, size, rows, epochs, views, mix(seed, views, rows))

    def _take(self, number: int, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and epochs at some positions of a group's endless sequence."""
        group = self.groups[number]
        epochs = position // len(group.rows)
        rows = np.empty_like(position)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._order(number, int(epoch)).rows(position[here] % len(group.rows))
        return rows, epochs

    def _order(self, number: int, epoch: int) -> "EpochOrder":
        """Return the order of a group's rows in an epoch."""
        orders = self._orders[number]
        if epoch not in orders:
            orders[epoch] = EpochOrder(self.groups[number], (self.seed, number, epoch), self.window)
        return orders[epoch]


class EpochOrder:
    """Shuffled order of a group's rows: of the row groups, then of the rows within windows of some row groups.

    It is computed one window at a time, so that a task of the stream does not shuffle a whole data set for one batch.
    """

    def __init__(self, group: Group, key: tuple[int, ...], window: int) -> None:
        """Shuffle the row groups.

        Args:
            group: rows to shuffle.
            key: seed of the order.
            window: number of row groups whose rows are shuffled together.
        """
        self.group = group
        random = np.random.default_rng(key)
        blocks = len(group.starts) - 1
        # The inverse of a permutation.
        self.order = np.empty(blocks, np.int32)
        self.order[random.permutation(blocks)] = np.arange(blocks, dtype=np.int32)
        # From here on each row of the group has its own place in the random stream.
        self.state = random.bit_generator.state
        self.window = window
        sizes = np.diff(group.starts)[self.order]
        self.ends = np.cumsum(np.add.reduceat(sizes, np.arange(0, blocks, window)))
        self.last: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Return the rows at some places of the order, 0..n-1."""
        rows = np.empty_like(places)
        number = np.searchsorted(self.ends, places, side="right")
        for window in np.unique(number):
            here = number == window
            begin = self.ends[window - 1] if window else 0
            rows[here] = self._window(int(window))[places[here] - begin]
        return rows

    def _window(self, number: int) -> np.ndarray:
        if self.last[0] != number:
            places, keys = [], []
            stream = np.random.PCG64()
            random = np.random.Generator(stream)
            for block in np.sort(self.order[number * self.window : (number + 1) * self.window]):
                first, end = self.group.starts[block : block + 2]
                stream.state = self.state  # type: ignore[assignment]
                stream.advance(int(first))
                places.append(np.arange(first, end))
                keys.append(random.random(end - first))
            shuffled = np.concatenate(places)[np.argsort(np.concatenate(keys))]
            self.last = (number, self.group.rows.at(shuffled))
        return self.last[1]


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """Batches of an evaluation: every row once, in storage order. The last one may be short, or empty for a worker."""

    index: Index
    batch_size: int
    size: int

    @property
    def largest(self) -> int:
        """Side of the images in pixels."""
        return self.size

    @property
    def steps(self) -> int:
        """Number of global batches."""
        return -(-len(self.index) // self.batch_size)

    def part(self, step: int, rank: int, workers: int) -> Part:
        """Compute the part of worker `rank` of `workers` in a batch."""
        batch = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, len(self.index)))
        rows = np.array_split(batch, workers)[rank]
        nothing = np.zeros_like(rows)
        return Part(step, rank, self.size, rows, nothing, nothing, nothing.astype(np.uint64))


def lay_plan(
    index: Index,
    *,
    usable: Sequence[TaskMask],
    mixing: Mapping[str, int] | None,
    batch_size: int,
    steps: int,
    seed: int,
    sizes: Sequence[int],
    window: int,
    multi_scale_until: float = 1.0,
    replay: Replay | None = None,
) -> Plan:
    """Lay the plan of a run over the rows that its losses can use.

    Args:
        index: index of the training split.
        usable: task masks of rows that some loss can use; other rows are left out.
        mixing: number of rows of each task mask in a batch, or of each source of the index; None for their natural
            proportions.
        batch_size: number of rows of a batch; used without `mixing`.
        steps: number of batches.
        seed: seed of the order, the sizes and the augmentation.
        sizes: sides of the square images in pixels, one of them for each batch.
        window: number of row groups whose rows are shuffled together.
        multi_scale_until: fraction of the steps after which all batches have the last size.
        replay: augmentations to repeat instead of those of `seed`.

    Raises:
        UserError: no row is usable, or `mixing` names rows that are absent or not usable.
    """
    if mixing is None:
        rows = index.rows(usable)
        if not len(rows):
            raise UserError(f"{index.path}: no row is of use: the model's tasks need rows with {' or '.join(usable)}")
        groups: tuple[Group, ...] = (_group(index, rows, batch_size),)
    else:
        order = [*TASK_MASKS, *(origin.name for origin in index.origins)]
        groups = tuple(
            _group(index, _mixed_rows(index, name, mixing[name], usable), mixing[name])
            for name in order
            if mixing.get(name)
        )
    return Plan(index, groups, seed, steps, tuple(sizes), window, round(multi_scale_until * steps), replay)


def _mixed_rows(index: Index, name: str, quota: int, usable: Sequence[TaskMask]) -> RowSet:
    """Return the usable rows of a task mask or source that `mixing` names, or raise a UserError if there are none."""
    masks = [mask for mask in TASK_MASKS if name == mask]
    if masks and masks[0] not in usable:
        raise UserError(f"data.mixing.{name}: {quota} rows, but no loss of this run can use such rows")
    rows = index.rows(masks) if masks else index.rows(usable, source=name)
    if not len(rows):
        of = index.path if masks else "its split"
        raise UserError(f"data.mixing.{name}: {quota} rows a batch, but {of} has none of them")
    return rows


def _group(index: Index, rows: RowSet, quota: int) -> Group:
    # A row group without any of these rows begins where the next one does.
    return Group(rows, np.unique(rows.below(index.block_starts)), quota)


def mix(seed: int, a: int | np.ndarray, b: int | np.ndarray) -> np.ndarray:
    """Hash three integers (broadcast) to uint64 by SplitMix64's finaliser: nearby inputs give unrelated seeds."""
    state = np.asarray(seed, np.uint64)
    with np.errstate(over="ignore"):
        for value in (a, b):
            state = (state + np.asarray(value).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            state ^= state >> np.uint64(30)
            state *= np.uint64(0xBF58476D1CE4E5B9)
            state ^= state >> np.uint64(27)
            state *= np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return state
