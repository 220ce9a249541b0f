"""What the workers of a run tell each other beside the step, and how one that does not answer is found."""

import re
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")
ROLL_CALL_S = 10.0


class Peers:
    """The workers of a run, as one of them sees them."""

    def __init__(self, rank: int, workers: int, timeout_s: float) -> None:
        """All workers call it.

        Args:
            timeout_s: after which a worker that waits for others gives up.
        """
        self.rank, self.workers, self.timeout_s = rank, workers, timeout_s
        # Apart from the gradients' connections, which are lost when a wait for them fails, and always on the CPU.
        self.group: Any = None
        if workers > 1:
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def gather(self, value: T) -> list[T]:
        """Every worker's value; all workers call it."""
        if self.group is None:
            return [value]
        values: list[T] = [value] * self.workers
        dist.all_gather_object(values, value, group=self.group)
        return values

    def explain(self, error: RuntimeError) -> str | None:
        """What a failed collective was waiting for, if it waited too long; None where it failed for another reason.

        All workers whose collective failed call it: those that do not are the ones that are missing.
        """
        if self.group is None or "gloo" not in str(error):
            return None
        missing = self._missing()
        if not missing or not re.search("time[d ]*out", str(error), re.IGNORECASE):
            return None
        names = " and ".join(f"rank {rank}" for rank in missing)
        return f"rank {self.rank} waited {self.timeout_s:g} s (train.timeout_s) for {names}, which did not answer"

    def _missing(self) -> list[int]:
        """The ranks that do not answer a roll call. Rank 0 hears from all; the others hear from rank 0 only."""
        try:
            dist.monitored_barrier(self.group, timedelta(seconds=ROLL_CALL_S), wait_all_ranks=True)
        except RuntimeError as error:
            if self.rank:
                return [0]
            named = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
            return [int(rank) for rank in re.findall(r"\d+", named[1])] if named else []
        return []
