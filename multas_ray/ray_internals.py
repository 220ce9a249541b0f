"""All uses of Ray's internals: names that Ray does not document and may change in any release.

tests/test_ray_internals.py uses each of them for real, and tells what to do if a release has changed one.
"""

import logging
from collections.abc import Mapping
from time import sleep
from typing import Any, NamedTuple

import ray
from ray._private.internal_api import node_stats
from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback

TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
"""Name of the logger that reports at every start that the local Ray wants a token, which no user has to type."""


def silence_ray() -> None:
    """Silence Ray's messages in a driver, at its start and on behalf of its raylets; to be called before `ray.init`."""
    logging.getLogger(TOKEN_LOGGER).setLevel(logging.ERROR)
    # It prints messages that raylets send to every driver, such as how many processes they have started.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None


def set_data_context() -> None:
    """Set Ray Data up for this project's streams, in the process that starts one.

    Its scheduler must neither take a core from the training nor run ahead.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # A row is a block of its own, whatever its size: blocks are dealt to the workers in turns.
    context.target_max_block_size = 1
    context.custom_execution_callback_classes = [IdleBackoff]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, QueueLimit])


class IdleBackoff(ExecutionCallback):
    """Pause of Ray Data's scheduling loop after each turn that changed nothing, twice as long from turn to turn.

    Without it the loop spins while the stream is held back, and takes a third of a core from the training.
    """

    SHORTEST_S, LONGEST_S = 0.005, 0.2

    def __init__(self) -> None:
        """Begin with the shortest pause."""
        self.progress = -1
        self.pause = self.SHORTEST_S

    def on_execution_step(self, executor: Any) -> None:
        """Pause if no operator has made progress since the last call; Ray Data calls it after every turn."""
        operators = executor._topology
        progress = sum(op.metrics.num_tasks_submitted + op.metrics.num_task_outputs_generated for op in operators)
        if progress != self.progress:
            self.progress, self.pause = progress, self.SHORTEST_S
            return
        sleep(self.pause)
        self.pause = min(2 * self.pause, self.LONGEST_S)


class QueueLimit(BackpressurePolicy):
    """Limit of the number of blocks in an operator's output queue.

    Ray Data limits only their bytes: it would list all of a long run's chunks in the first minutes, at the price of a
    fifth of a core and of memory that grows with the run.
    """

    BLOCKS = 256

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """Return 0 while the operator's queue is full, else None: no limit."""
        return 0 if self._topology[op].output_queue.num_blocks >= self.BLOCKS else None


class StoreUse(NamedTuple):
    """Use of a node's object store, in bytes."""

    used: int
    """In the store now."""
    spilled: int
    """Written to disk since the node started."""


def object_store_use(node: Mapping[str, Any]) -> StoreUse:
    """Ask a node's raylet for the use of its object store.

    Args:
        node: one of `ray.nodes()`.
    """
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
    return StoreUse(stats.object_store_bytes_used, stats.spilled_bytes_total)
