"""Streams of Ray Data: tasks read, decode, augment and collate a plan's batches, some steps of a worker at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.train import DataConfig

from multas_ray.config import AugmentConfig, Resources
from multas_ray.data.batch import EvalBatch, Failure, TrainBatch
from multas_ray.data.numbers import Numbers
from multas_ray.data.packing import pack, unpack
from multas_ray.data.plan import EvaluationPlan, Plan
from multas_ray.errors import UserError
from multas_ray.ray_internals import set_data_context

Addition = Callable[[TrainBatch], TrainBatch]
"""Function that adds something to a batch, such as stored soft targets."""

CHUNK_IMAGES, CHUNK_BYTES = 64, 32e6
"""Largest number of images, and of bytes of pixels, that one Ray Data task makes (but a batch at least): enough that
Ray's work for a task does not count, few enough for a short first wait."""
TASKS_AN_ACTOR = 3
"""Number of tasks that an actor of the training stream is given ahead, so that it never waits for the scheduler."""


@dataclass(frozen=True)
class PlannedStream:
    """One of a run's streams, before the number of its readers and its first step are known."""

    plan: Plan | EvaluationPlan
    """Rows of every batch."""
    begin: Callable[[], int] = lambda: 0
    """Function that returns the first step; called at every start of the workers."""
    augment: AugmentConfig | None = None
    """Configuration of the augmentation of `TrainBatch`es; None for `EvalBatch`es."""
    additions: Sequence[Addition] = ()
    """Additions to each `TrainBatch`, made by the same tasks, one after the other."""


@dataclass(frozen=True)
class ChunkLayout:
    """Division of a stream's batches into numbered chunks: `length` steps of each worker in turn."""

    plan: Plan | EvaluationPlan
    workers: int
    start: int
    """First step."""
    length: int
    """Steps of a chunk."""
    augment: AugmentConfig | None
    additions: Sequence[Addition]


def stream(source: PlannedStream, workers: int, *, parallel: int, resources: Resources) -> ray.data.Dataset:
    """Lay out a Ray data set of chunks, one a row and block: each holds one worker's batches of some steps.

    The workers' chunks take turns. Read in order through `streaming_split(workers, equal=True)`, which deals the blocks
    out in turns, every worker gets just its own batches, from the first step to the plan's last.

    Args:
        source: plan, first step, augmentation and additions.
        workers: number of workers.
        parallel: largest number of tasks at a time.
        resources: resources of each task; an evaluation's tasks reserve no CPU.
    """
    set_data_context()
    plan, start, length = source.plan, source.begin(), chunk_length(source.plan, workers)
    chunks = -(-(plan.steps - start) // length) * workers
    layout = ChunkLayout(plan, workers, start, length, source.augment, source.additions)
    options: dict[str, Any] = {"batch_size": None, "zero_copy_batch": True} | resources.options()
    if isinstance(plan, EvaluationPlan):
        # Evaluations are short and frequent, so plain tasks reuse warm processes. They reserve no CPU: the training
        # actors may hold all CPUs (idle now), and the evaluation would deadlock.
        tasks = ray.data.TaskPoolStrategy(size=parallel)
        numbers = ray.data.from_items([{"id": number} for number in range(chunks)], override_num_blocks=max(1, chunks))
        return numbers.map_batches(partial(make_chunk, layout=layout), compute=tasks, **options | {"num_cpus": 0})
    # Training is long: actors cache what they have read. One task yields the chunks' numbers as they are consumed, so
    # that nothing grows with the run; it lasts as long as the stream, and reserves no CPU for its waiting.
    actors = ray.data.ActorPoolStrategy(size=parallel, max_tasks_in_flight_per_actor=TASKS_AN_ACTOR)
    numbers = ray.data.read_datasource(Numbers(chunks), num_cpus=0, override_num_blocks=1)
    dataset = numbers.map_batches(ChunkMaker, fn_constructor_kwargs={"layout": layout}, compute=actors, **options)
    # A stream that is full makes no progress while the workers evaluate: that must never count as stuck.
    dataset.context.execution_no_progress_timeout_s = -1
    return dataset


def chunk_length(plan: Plan | EvaluationPlan, workers: int) -> int:
    """Return the number of steps of a chunk."""
    rows = -(-plan.batch_size // workers)
    return max(1, int(min(CHUNK_IMAGES, CHUNK_BYTES // _image_bytes(plan.largest)) // rows))


def _image_bytes(size: int) -> int:
    """Return the bytes of pixels and mask of an image of this side in pixels."""
    return 4 * size**2


class PlannedData(DataConfig):
    """Layout of the streams of a Ray Train run, made once the number of workers is known.

    Ray calls it anew at every start of the worker group, which need not be as large as the one before.
    """

    def __init__(self, parallel: int, resources: Resources) -> None:
        """Set the number of parallel tasks and their resources, as in `stream`."""
        super().__init__(enable_shard_locality=False)
        self.parallel, self.resources = parallel, resources

    def configure(
        self, datasets: dict[str, PlannedStream], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Split each `PlannedStream` into shards: every worker's, by the stream's name."""
        shards: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, source in datasets.items():
            dataset = stream(source, world_size, parallel=self.parallel, resources=self.resources)
            dataset.set_name(name)
            dataset.context.execution_options = stream_options(source.plan, world_size, self.parallel)
            for shard, split in zip(shards, dataset.streaming_split(world_size, equal=True), strict=True):
                shard[name] = split
        return shards


def stream_options(plan: Plan | EvaluationPlan, workers: int, parallel: int) -> ray.data.ExecutionOptions:
    """Set Ray Data to run a stream in order, and a few chunks ahead.

    Without a limit the stream would fill half of the object store with batches of far steps. The limit is two chunks
    for every worker and one for every task that is given to an actor, and as much again, because Ray Data reserves half
    for whichever operator needs it; at least 64 MB.
    """
    rows = -(-plan.batch_size // workers)
    chunk = chunk_length(plan, workers) * rows * _image_bytes(plan.largest)
    memory = max(64e6, 2.0 * chunk * (TASKS_AN_ACTOR * parallel + 2 * workers))
    return ray.data.ExecutionOptions(
        preserve_order=True, resource_limits=ray.data.ExecutionResources.for_limits(object_store_memory=memory)
    )


class ChunkMaker:
    """Actor that makes chunks: it imports PyTorch once, and caches row groups and the plan's order."""

    def __init__(self, layout: ChunkLayout) -> None:
        """Hold the layout, so that it is sent once."""
        self.layout = layout

    def __call__(self, chunk: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        """Make the chunks numbered `chunk["id"]`, as `make_chunk` does."""
        return make_chunk(chunk, self.layout)


def make_chunk(chunk: dict[str, np.ndarray], layout: ChunkLayout) -> Iterator[pa.Table]:
    """Yield the packed batches of each chunk numbered in `chunk["id"]`; a `Failure` in place of an unusable batch."""
    # Not imported above: Ray Data's own processes unpickle this function too, and would spend seconds on torch.
    import torch

    from multas_ray.data.collate import make_eval_batch, make_train_batch

    torch.set_num_threads(1)
    plan, length = layout.plan, layout.length
    for number in chunk["id"]:
        turn, rank = divmod(int(number), layout.workers)
        first = layout.start + turn * length
        batches: list[TrainBatch | EvalBatch | Failure] = []
        for step in range(first, min(first + length, plan.steps)):
            try:
                part = plan.part(step, rank, layout.workers)
                if layout.augment is None:
                    batches.append(make_eval_batch(plan.index, part))
                    continue
                batch = make_train_batch(plan.index, part, layout.augment)
                for addition in layout.additions:
                    batch = addition(batch)
                batches.append(batch)
            except UserError as error:
                batches.append(Failure(str(error)))
        yield pack(batches)


def read_batches(shard: ray.data.DataIterator) -> Iterator[Any]:
    """Yield the batches of one worker's shard of a `stream`; one more chunk is fetched ahead.

    They are `TrainBatch`es or `EvalBatch`es, or whatever later stages of the data set turned them into.

    Raises:
        UserError: the data can no longer be used.
    """
    for table in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for batch in unpack(table):
            if isinstance(batch, Failure):
                raise UserError(batch.message)
            yield batch
