"""Exchange of values between the workers of a run beside the training step, and the search for a silent worker."""

import re
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")
ROLL_CALL_S = 10.0
"""Seconds in which each worker must answer a roll call."""


class WorkerGroup:
    """Workers of a run, as one of them sees them."""

    def __init__(self, rank: int, workers: int, timeout_s: float) -> None:
        """Join the group. All workers call it.

        Args:
            rank: rank of this worker.
            workers: number of workers.
            timeout_s: seconds after which a worker that waits for others gives up.
        """
        self.rank, self.workers, self.timeout_s = rank, workers, timeout_s
        # Separate from the gradients' connections, which are lost when a wait for them fails, and always on the CPU.
        self.group: Any = None
        if workers > 1:
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def gather(self, value: T) -> list[T]:
        """Gather the values of all workers, by rank. All workers call it."""
        if self.group is None:
            return [value]
        values: list[T] = [value] * self.workers
        dist.all_gather_object(values, value, group=self.group)
        return values

    def explain(self, error: RuntimeError) -> str | None:
        """Explain a failed collective operation by the ranks that it waited for.

        All workers whose operation failed call it: those that do not are the missing ones.

        Returns:
            One line; None if the operation failed for another reason than a timeout.
        """
        if self.group is None or "gloo" not in str(error):
            return None
        missing = self._missing()
        if not missing or not re.search("time[d ]*out", str(error), re.IGNORECASE):
            return None
        names = " and ".join(f"rank {rank}" for rank in missing)
        return f"rank {self.rank} waited {self.timeout_s:g} s (train.timeout_s) for {names}, which did not answer"

    def _missing(self) -> list[int]:
        """Call the roll, and return the ranks that do not answer. Rank 0 hears all; the others hear rank 0 only."""
        try:
            dist.monitored_barrier(self.group, timedelta(seconds=ROLL_CALL_S), wait_all_ranks=True)
        except RuntimeError as error:
            if self.rank:
                return [0]
            named = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
            return [int(rank) for rank in re.findall(r"\d+", named[1])] if named else []
        return []
