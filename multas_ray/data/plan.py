"""The plan of a run: which rows, augmented how, make up which batch. Pure functions of seed and step, without Ray.

Every step's batch can be computed on its own, so that a run resumes at any step, with any number of workers, and any
task of the data stream can lay out its chunk by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from multas_ray.data.index import Index
from multas_ray.data.schema import TASK_MASKS, TaskMask
from multas_ray.errors import UserError


@dataclass(frozen=True)
class Part:
    """One worker's share of one global batch."""

    step: int
    rank: int
    size: int
    """Side of the square images in pixels."""
    rows: np.ndarray
    """(b,) int64: rows of the index."""
    epochs: np.ndarray
    """(b,) int64: how often the row has been seen before."""
    views: np.ndarray
    """(b,) int64: which of the row's augmentations this is; without stored targets, one an epoch."""
    seeds: np.ndarray
    """(b,) uint64: seeds of the rows' augmentation."""

    def at(self, places: Sequence[int]) -> "Part":
        """The part with the rows at these places only."""
        chosen = np.array(places, np.int64)
        columns = {name: getattr(self, name)[chosen] for name in ("rows", "epochs", "views", "seeds")}
        return replace(self, **columns)


@dataclass(frozen=True)
class Group:
    """Rows that are visited in turns of their own."""

    rows: np.ndarray
    """(n,) int64, in storage order."""
    starts: np.ndarray
    """(g + 1,) int64: where each row group begins in `rows`, and n."""
    quota: int
    """Rows of it in every batch."""


@dataclass(frozen=True)
class Replay:
    """Augmentations that soft targets are stored for: some views of each row, taken in turns, epoch after epoch."""

    seed: int
    views: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches of a training run.

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
    """Row groups shuffled together."""
    multi_scale_steps: int
    """Steps of random sizes; those after it have the last one."""
    replay: Replay | None = None
    """Where the augmentations come from if they are not the run's own."""
    _orders: dict[tuple[int, int], "EpochOrder"] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple:
        return Plan, (
            *(self.index, self.groups, self.seed, self.steps, self.sizes, self.window),
            *(self.multi_scale_steps, self.replay),
        )

    @property
    def batch_size(self) -> int:
        """Rows of a global batch."""
        return sum(group.quota for group in self.groups)

    @property
    def largest(self) -> int:
        """Side of the largest images in pixels."""
        return max(self.sizes)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every row has been seen at least once."""
        return max(len(group.rows) / group.quota for group in self.groups)

    def part(self, step: int, rank: int, workers: int) -> Part:
        """What worker `rank` of `workers` gets at a step: of every group a run of consecutive rows, so that a part
        needs few reads. The parts of a step differ in size by at most one row."""
        picked = []
        before = 0
        for number, group in enumerate(self.groups):
            # Dealt out like cards, group after group; whoever got one row more comes last in the next group.
            shares = [len(range((turn - before) % workers, group.quota, workers)) for turn in range(workers)]
            first = step * group.quota + sum(shares[:rank])
            picked.append(self._take(number, np.arange(first, first + shares[rank])))
            before += group.quota
        rows, epochs = (np.concatenate(column) for column in zip(*picked, strict=True))
        drawn = int(mix(self.seed, step, 0x512E) % np.uint64(len(self.sizes)))
        size = self.sizes[drawn] if step < self.multi_scale_steps else self.sizes[-1]
        seed, views = (self.seed, epochs) if self.replay is None else (self.replay.seed, epochs % self.replay.views)
        return Part(step, rank, size, rows, epochs, views, mix(seed, views, rows))

    def _take(self, number: int, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and epochs at positions of a group's sequence."""
        group = self.groups[number]
        epochs = position // len(group.rows)
        rows = np.empty_like(position)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._order(number, int(epoch)).rows(position[here] % len(group.rows))
        return rows, epochs

    def _order(self, number: int, epoch: int) -> "EpochOrder":
        """A group's rows in the order of an epoch. Those of the last two epochs of each group are kept."""
        key = (number, epoch)
        if key not in self._orders:
            self._orders.pop((number, epoch - 2), None)
            self._orders[key] = EpochOrder(self.groups[number], (self.seed, number, epoch), self.window)
        return self._orders[key]


class EpochOrder:
    """A group's rows, shuffled: first the row groups, then the rows within windows of some row groups. Worked out
    window by window, so that a task of the stream does not shuffle a whole data set for one batch."""

    def __init__(self, group: Group, key: tuple[int, ...], window: int) -> None:
        self.group = group
        random = np.random.default_rng(key)
        blocks = len(group.starts) - 1
        self.order = np.argsort(random.permutation(blocks))
        # From here on each row of the group has its own place in the random stream.
        self.state = random.bit_generator.state
        self.window = window
        sizes = np.diff(group.starts)[self.order]
        self.ends = np.cumsum(np.add.reduceat(sizes, np.arange(0, blocks, window)))
        self.last: tuple[int, np.ndarray] = (-1, group.rows[:0])

    def rows(self, places: np.ndarray) -> np.ndarray:
        """The rows at some places of the order, 0..n-1."""
        found = np.empty_like(places)
        number = np.searchsorted(self.ends, places, side="right")
        for window in np.unique(number):
            here = number == window
            begin = self.ends[window - 1] if window else 0
            found[here] = self._window(int(window))[places[here] - begin]
        return found

    def _window(self, number: int) -> np.ndarray:
        if self.last[0] != number:
            rows, keys = [], []
            for block in np.sort(self.order[number * self.window : (number + 1) * self.window]):
                first, end = self.group.starts[block : block + 2]
                generator = np.random.PCG64()
                generator.state = self.state  # type: ignore[assignment]
                generator.advance(int(first))
                rows.append(self.group.rows[first:end])
                keys.append(np.random.Generator(generator).random(end - first))
            self.last = (number, np.concatenate(rows)[np.argsort(np.concatenate(keys))])
        return self.last[1]


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """Every row of a split once, in storage order; the last batch may be short, even empty for a worker."""

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
        """What worker `rank` of `workers` gets of a batch."""
        batch = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, len(self.index)))
        rows = np.array_split(batch, workers)[rank]
        nothing = np.zeros_like(rows)
        return Part(step, rank, self.size, rows, nothing, nothing, nothing.astype(np.uint64))


def lay_plan(
    index: Index,
    *,
    usable: Sequence[TaskMask],
    mixing: Mapping[TaskMask, int] | None,
    batch_size: int,
    steps: int,
    seed: int,
    sizes: Sequence[int],
    window: int,
    multi_scale_until: float = 1.0,
    replay: Replay | None = None,
) -> Plan:
    """The plan of a run over the rows that can teach it something.

    Args:
        usable: task masks of rows that some loss can use; others are left out.
        mixing: rows of each task mask in a batch, or None for their natural proportions.
        sizes: sides of the square images in pixels, one a batch.
        window: row groups shuffled together.
        multi_scale_until: part of the steps after which all batches have the last size.
        replay: augmentations to take instead of the run's own.

    Raises:
        UserError: no usable row, or a quota for rows that are absent or useless.
    """
    if mixing is None:
        rows = index.rows(usable)
        if not len(rows):
            raise UserError(f"{index.path}: no row is of use: the model's tasks need rows with {' or '.join(usable)}")
        groups: tuple[Group, ...] = (_group(index, rows, batch_size),)
    else:
        for mask, quota in mixing.items():
            if quota and mask not in usable:
                raise UserError(f"data.mixing.{mask}: {quota} rows, but no loss of this run can use such rows")
            if quota and not len(index.rows([mask])):
                raise UserError(f"data.mixing.{mask}: {quota} rows a batch, but {index.path} has none of them")
        groups = tuple(_group(index, index.rows([mask]), mixing[mask]) for mask in TASK_MASKS if mixing.get(mask))
    return Plan(index, groups, seed, steps, tuple(sizes), window, round(multi_scale_until * steps), replay)


def _group(index: Index, rows: np.ndarray, quota: int) -> Group:
    blocks = index.block[rows]
    starts = np.flatnonzero(np.diff(blocks, prepend=-1, append=-1))
    return Group(rows, starts, quota)


def mix(seed: int, a: int | np.ndarray, b: int | np.ndarray) -> np.ndarray:
    """uint64 hash of three integers (broadcast), by SplitMix64's finaliser: nearby inputs give unrelated seeds."""
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
