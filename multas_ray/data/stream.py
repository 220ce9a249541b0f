"""The Ray Data stream: chunks of a plan become packed batches, read, decoded, augmented and collated in Ray tasks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import sleep
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import DataConfig

from multas_ray.config import AugmentConfig
from multas_ray.data.batch import pack, unpack
from multas_ray.data.plan import EvaluationPlan, Plan
from multas_ray.errors import UserError

Targets = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""What is to be added to a batch."""

CHUNK_IMAGES = 32
"""Images that one Ray Data task makes: enough that its start-up does not count, few enough for a short first wait."""


def stream(
    plan: Plan | EvaluationPlan,
    workers: int,
    *,
    start: int = 0,
    augment: AugmentConfig | None = None,
    targets: Targets | None = None,
    parallel: int,
    cpus_per_task: float,
) -> ray.data.Dataset:
    """A Ray data set of packed batches, one a row and block: all workers' batches of a step, then those of the next.
    A task makes a chunk of them, the next few in this order.

    Read in order through `streaming_split(workers, equal=True)`, which deals the blocks out in turns, every worker gets
    just its own batches, from step `start` to the plan's last.

    Args:
        augment: None leaves out augmentation and adds the ground truth in original pixels, for evaluation.
        targets: adds stored soft targets.
        parallel: most tasks at a time.
    """
    set_data_context()
    batches = (plan.steps - start) * workers
    rows_a_batch = max(1, (plan.batch_size + workers - 1) // workers)
    size = max(1, CHUNK_IMAGES // rows_a_batch)
    chunks = -(-batches // size)
    settings: dict[str, Any] = {
        "plan": plan,
        "workers": workers,
        "start": start,
        "size": size,
        "augment": augment,
        "targets": targets,
    }
    options: dict[str, Any] = {"batch_size": None, "zero_copy_batch": True, "num_cpus": cpus_per_task}
    if isinstance(plan, EvaluationPlan):
        # Short and often: tasks find processes that are there.
        tasks = ray.data.TaskPoolStrategy(size=parallel)
        source = ray.data.range(chunks, override_num_blocks=max(1, chunks))
        return source.map_batches(partial(make_chunk, **settings), compute=tasks, **options)
    # Long: actors keep what they have read, and one task tells the chunks' numbers, so that nothing grows with the run.
    actors = ray.data.ActorPoolStrategy(size=parallel)
    source = ray.data.range(chunks, override_num_blocks=1)
    return source.map_batches(ChunkMaker, fn_constructor_kwargs=settings, compute=actors, **options)


@dataclass(frozen=True)
class Source:
    """One of a run's streams, before it is known who reads it and where it begins."""

    plan: Plan | EvaluationPlan
    size: int
    """Largest side of its images in pixels."""
    begin: Callable[[], int] = lambda: 0
    """The step to begin with; asked at every start of the workers."""
    augment: AugmentConfig | None = None
    """See `stream`."""
    targets: Targets | None = None
    """See `stream`."""


class PlannedData(DataConfig):
    """Lays out the streams of a Ray Train run where the number of workers is known: Ray calls it anew at every start of
    the worker group, which need not be as large as the one before."""

    def __init__(self, parallel: int, cpus_per_task: float) -> None:
        """Args: as of `stream`."""
        super().__init__(enable_shard_locality=False)
        self.parallel, self.cpus_per_task = parallel, cpus_per_task

    def configure(self, datasets: dict[str, Source], world_size: int, *args: Any, **kwargs: Any) -> list[dict]:
        """Every worker's shard of each `Source`, by name."""
        shards: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, source in datasets.items():
            dataset = stream(
                source.plan,
                world_size,
                start=source.begin(),
                augment=source.augment,
                targets=source.targets,
                parallel=self.parallel,
                cpus_per_task=self.cpus_per_task,
            )
            dataset.set_name(name)
            dataset.context.execution_options = stream_options(source.size, world_size, self.parallel)
            for shard, split in zip(shards, dataset.streaming_split(world_size, equal=True), strict=True):
                shard[name] = split
        return shards


def set_data_context() -> None:
    """Ray Data's settings for our streams, in the process that starts one."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Whatever its size, a batch is a block of its own: blocks are what workers get in turns.
    context.target_max_block_size = 1
    context.custom_execution_callback_classes = [Unhurried]
    # A training stream that is full makes no progress while the workers evaluate: that must never count as stuck.
    context.execution_no_progress_timeout_s = -1


class Unhurried(ExecutionCallback):
    """Lets Ray Data's scheduling loop pause where its last turn changed nothing, longer from turn to turn: while the
    stream is held back, the loop would else spin and take a third of a core from the training."""

    SHORTEST_S, LONGEST_S = 0.005, 0.2

    def __init__(self) -> None:
        self.progress = -1
        self.pause = self.SHORTEST_S

    def on_execution_step(self, executor: Any) -> None:
        """Called after every turn."""
        operators = executor._topology
        progress = sum(op.metrics.num_tasks_submitted + op.metrics.num_task_outputs_generated for op in operators)
        if progress != self.progress:
            self.progress, self.pause = progress, self.SHORTEST_S
            return
        sleep(self.pause)
        self.pause = min(2 * self.pause, self.LONGEST_S)


def stream_options(size: int, workers: int, parallel: int) -> ray.data.ExecutionOptions:
    """How Ray Data is to run a stream of images of this side: in order, at most some batches ahead.

    Without a limit of our own the stream would fill half of the object store with batches of a far future. It gets two
    chunks for every task and worker, of the bytes of pixels and masks, and as much again for what is in flight; at
    least 64 MB.
    """
    chunk = CHUNK_IMAGES * 4 * size**2 * 2
    memory = max(64e6, 2.0 * chunk * (parallel + workers))
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
    size: int,
    augment: AugmentConfig | None,
    targets: Targets | None,
) -> Iterator[pa.Table]:
    """The packed batches of chunk `chunk["id"]`, one table each; where data are unusable, one that says why."""
    # Not imported above: Ray Data's own processes unpickle this function too, and would spend seconds on torch.
    import torch

    from multas_ray.data.collate import make_batch

    torch.set_num_threads(1)
    for chunk_number in chunk["id"]:
        for number in range(int(chunk_number) * size, (int(chunk_number) + 1) * size):
            turn, rank = divmod(number, workers)
            if start + turn >= plan.steps:
                return
            try:
                batch = make_batch(plan.index, plan.part(start + turn, rank, workers), augment)
                yield pack(batch | (targets(batch) if targets is not None else {}))
            except UserError as error:
                # Raised here it would reach the workers as Ray Data's, without its own type.
                yield pack({"error": np.frombuffer(str(error).encode(), np.uint8)})


def read_batches(shard: ray.data.DataIterator, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches of one worker's shard of a `stream`, unpacked; `prefetch` more are fetched ahead.

    Raises:
        UserError: the data cannot be used any more.
    """
    for table in shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=prefetch):
        batch = unpack(table)
        if "error" in batch:
            raise UserError(batch["error"].tobytes().decode())
        yield batch
