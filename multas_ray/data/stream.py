"""The Ray Data stream: chunks of a plan become packed batches, read, decoded, augmented and collated in Ray tasks."""

from collections.abc import Callable, Iterator
from functools import partial
from time import sleep

import numpy as np
import pyarrow as pa
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

from multas_ray.config import AugmentConfig
from multas_ray.data.batch import pack, unpack
from multas_ray.data.plan import EvaluationPlan, Part, Plan

Targets = Callable[[dict[str, np.ndarray], Part], dict[str, np.ndarray]]
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
    """A Ray data set of packed batches, one a row: chunk i holds the next few batches of worker i mod `workers`.

    Read in order through `streaming_split(workers, equal=True)`, every worker gets just its own batches, from step
    `start` to the plan's last.

    Args:
        augment: None leaves out augmentation and adds the ground truth in original pixels, for evaluation.
        targets: adds stored soft targets.
        parallel: most tasks at a time.
    """
    set_data_context()
    rows_a_part = max(1, (plan.batch_size + workers - 1) // workers)
    chunk_steps = max(1, CHUNK_IMAGES // rows_a_part)
    chunks = -(-(plan.steps - start) // chunk_steps) * workers
    make = partial(
        make_chunk,
        plan=plan,
        workers=workers,
        start=start,
        chunk_steps=chunk_steps,
        augment=augment,
        targets=targets,
    )
    return ray.data.range(chunks, override_num_blocks=max(1, chunks)).map_batches(
        make,
        batch_size=None,
        zero_copy_batch=True,
        num_cpus=cpus_per_task,
        compute=ray.data.TaskPoolStrategy(size=parallel),
    )


def set_data_context() -> None:
    """Ray Data's settings for our streams, in the process that starts one."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [Unhurried]
    # A training stream that is full makes no progress while the workers evaluate: that must never count as stuck.
    context.execution_no_progress_timeout_s = -1


class Unhurried(ExecutionCallback):
    """Pauses Ray Data's scheduling loop at every turn: while the stream is held back, it would spin without a pause and
    take a third of a core from the training."""

    def on_execution_step(self, executor: object) -> None:
        """Sleep."""
        sleep(0.05)


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


def make_chunk(
    chunk: dict[str, np.ndarray],
    *,
    plan: Plan | EvaluationPlan,
    workers: int,
    start: int,
    chunk_steps: int,
    augment: AugmentConfig | None,
    targets: Targets | None,
) -> Iterator[pa.Table]:
    """The packed batches of chunk `chunk["id"]`, one table each."""
    # Not imported above: Ray Data's own processes unpickle this function too, and would spend seconds on torch.
    import torch

    from multas_ray.data.collate import make_batch

    torch.set_num_threads(1)
    for number in chunk["id"]:
        turn, rank = divmod(int(number), workers)
        first = start + turn * chunk_steps
        for step in range(first, min(first + chunk_steps, plan.steps)):
            part = plan.part(step, rank, workers)
            batch = make_batch(plan.index, part, augment)
            yield pack(batch | (targets(batch, part) if targets is not None else {}))


def read_batches(shard: ray.data.DataIterator, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches of one worker's shard of a `stream`, unpacked; `prefetch` more are fetched ahead."""
    for table in shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=prefetch):
        yield unpack(table)
