"""How fast Ray Data's scheduler goes about a stream: it must neither take a core from the training nor run ahead."""

from time import sleep
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback


def set_data_context() -> None:
    """Ray Data's settings for our streams, in the process that starts one."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # Whatever its size, a row is a block of its own: blocks are what workers get in turns.
    context.target_max_block_size = 1
    context.custom_execution_callback_classes = [Unhurried]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, ShortQueues])


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


class ShortQueues(BackpressurePolicy):
    """Reads no more from an operator behind which many blocks wait already. Ray Data only counts their bytes: it would
    list all of a long run's chunks in the first minutes, at the price of a fifth of a core and of memory that grows
    with the run."""

    BLOCKS = 256

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """0, or None for as much as there is."""
        return 0 if self._topology[op].output_queue.num_blocks >= self.BLOCKS else None
