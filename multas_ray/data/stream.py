"""The Ray Data stream: chunks of a plan become packed batches, read, decoded, augmented and collated in Ray tasks."""

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
"""Adds something to a batch: stored soft targets, say."""

CHUNK_IMAGES, CHUNK_BYTES = 64, 32e6
"""The most images, and bytes of pixels, that one Ray Data task makes (but a batch at least): enough that Ray's work for
a task does not count, few enough for a short first wait."""
TASKS_AN_ACTOR = 3
"""Tasks that an actor of the training stream is given ahead, so that it never waits for the scheduler."""


def stream(
    plan: Plan | EvaluationPlan,
    workers: int,
    *,
    start: int = 0,
    augment: AugmentConfig | None = None,
    additions: Sequence[Addition] = (),
    parallel: int,
    resources: Resources,
) -> ray.data.Dataset:
    """A Ray data set of chunks, one a row and block: each holds one worker's batches of some steps. The workers' chunks
    take turns.

    Read in order through `streaming_split(workers, equal=True)`, which deals the blocks out in turns, every worker gets
    just its own batches, from step `start` to the plan's last.

    Args:
        augment: None makes an `EvalBatch` each, else a `TrainBatch`.
        additions: to each `TrainBatch`, made by the same tasks, one after the other.
        parallel: most tasks at a time.
        resources: of each task; an evaluation's reserve no CPU.
    """
    set_data_context()
    length = chunk_length(plan, workers)
    chunks = -(-(plan.steps - start) // length) * workers
    settings: dict[str, Any] = {
        "plan": plan,
        "workers": workers,
        "start": start,
        "length": length,
        "augment": augment,
        "additions": additions,
    }
    options: dict[str, Any] = {"batch_size": None, "zero_copy_batch": True} | resources.options()
    if isinstance(plan, EvaluationPlan):
        # Short and often: tasks find processes that are there. The training stream's actors, which may hold all CPUs,
        # have nothing to do meanwhile: reserving some beside theirs, an evaluation might wait for ever.
        tasks = ray.data.TaskPoolStrategy(size=parallel)
        source = ray.data.from_items([{"id": number} for number in range(chunks)], override_num_blocks=max(1, chunks))
        return source.map_batches(partial(make_chunk, **settings), compute=tasks, **options | {"num_cpus": 0})
    # Long: actors keep what they have read. One task tells the chunks' numbers, as they are asked for, so that nothing
    # grows with the run; it lasts as long as the stream, and reserves nothing for its waiting.
    actors = ray.data.ActorPoolStrategy(size=parallel, max_tasks_in_flight_per_actor=TASKS_AN_ACTOR)
    source = ray.data.read_datasource(Numbers(chunks), num_cpus=0, override_num_blocks=1)
    dataset = source.map_batches(ChunkMaker, fn_constructor_kwargs=settings, compute=actors, **options)
    # A stream that is full makes no progress while the workers evaluate: that must never count as stuck.
    dataset.context.execution_no_progress_timeout_s = -1
    return dataset


def chunk_length(plan: Plan | EvaluationPlan, workers: int) -> int:
    """Steps of a chunk."""
    rows = -(-plan.batch_size // workers)
    return max(1, int(min(CHUNK_IMAGES, CHUNK_BYTES // _image_bytes(plan.largest)) // rows))


def _image_bytes(size: int) -> int:
    """Of pixels and mask."""
    return 4 * size**2


@dataclass(frozen=True)
class PlannedStream:
    """One of a run's streams, before it is known who reads it and where it begins."""

    plan: Plan | EvaluationPlan
    begin: Callable[[], int] = lambda: 0
    """The step to begin with; asked at every start of the workers."""
    augment: AugmentConfig | None = None
    """See `stream`."""
    additions: Sequence[Addition] = ()
    """See `stream`."""


class PlannedData(DataConfig):
    """Lays out the streams of a Ray Train run where the number of workers is known: Ray calls it anew at every start of
    the worker group, which need not be as large as the one before."""

    def __init__(self, parallel: int, resources: Resources) -> None:
        """Args: as of `stream`."""
        super().__init__(enable_shard_locality=False)
        self.parallel, self.resources = parallel, resources

    def configure(self, datasets: dict[str, PlannedStream], world_size: int, *args: Any, **kwargs: Any) -> list[dict]:
        """Every worker's shard of each `PlannedStream`, by name."""
        shards: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, source in datasets.items():
            dataset = stream(
                source.plan,
                world_size,
                start=source.begin(),
                augment=source.augment,
                additions=source.additions,
                parallel=self.parallel,
                resources=self.resources,
            )
            dataset.set_name(name)
            dataset.context.execution_options = stream_options(source.plan, world_size, self.parallel)
            for shard, split in zip(shards, dataset.streaming_split(world_size, equal=True), strict=True):
                shard[name] = split
        return shards


def stream_options(plan: Plan | EvaluationPlan, workers: int, parallel: int) -> ray.data.ExecutionOptions:
    """How Ray Data is to run a stream: in order, at most some chunks ahead.

    Without a limit of our own the stream would fill half of the object store with batches of a far future. It gets two
    chunks for every worker and one for every task, and as much again, because Ray Data holds half back for whichever
    operator is in need; at least 64 MB.
    """
    rows = -(-plan.batch_size // workers)
    chunk = chunk_length(plan, workers) * rows * _image_bytes(plan.largest)
    memory = max(64e6, 2.0 * chunk * (TASKS_AN_ACTOR * parallel + 2 * workers))
    return ray.data.ExecutionOptions(
        preserve_order=True, resource_limits=ray.data.ExecutionResources.for_limits(object_store_memory=memory)
    )


class ChunkMaker:
    """An actor that makes chunks: it imports PyTorch once, and keeps row groups and the plan's order."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __call__(self, chunk: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        """See `make_chunk`."""
        return make_chunk(chunk, **self.settings)


def make_chunk(
    chunk: dict[str, np.ndarray],
    *,
    plan: Plan | EvaluationPlan,
    workers: int,
    start: int,
    length: int,
    augment: AugmentConfig | None,
    additions: Sequence[Addition],
) -> Iterator[pa.Table]:
    """The packed batches of the chunks numbered `chunk["id"]`; in place of an unusable one, a `Failure`."""
    # Not imported above: Ray Data's own processes unpickle this function too, and would spend seconds on torch.
    import torch

    from multas_ray.data.collate import make_eval_batch, make_train_batch

    torch.set_num_threads(1)
    for number in chunk["id"]:
        turn, rank = divmod(int(number), workers)
        first = start + turn * length
        batches: list[TrainBatch | EvalBatch | Failure] = []
        for step in range(first, min(first + length, plan.steps)):
            try:
                part = plan.part(step, rank, workers)
                if augment is None:
                    batches.append(make_eval_batch(plan.index, part))
                    continue
                batch = make_train_batch(plan.index, part, augment)
                for addition in additions:
                    batch = addition(batch)
                batches.append(batch)
            except UserError as error:
                batches.append(Failure(str(error)))
        yield pack(batches)


def read_batches(shard: ray.data.DataIterator) -> Iterator[Any]:
    """The batches of one worker's shard of a `stream`, unpacked: a `TrainBatch` or `EvalBatch` each, or what has been
    made of it. One more chunk is fetched ahead.

    Raises:
        UserError: the data cannot be used any more.
    """
    for table in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for batch in unpack(table):
            if isinstance(batch, Failure):
                raise UserError(batch.message)
            yield batch
