"""Running sums of losses and times between two log lines."""

from collections.abc import Mapping
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor

from multas_ray.teacher.feed import Fed
from multas_ray.train.trainer import StepOutcome


class Meter:
    """Losses and times of the steps since the last log line. Losses stay on the device, and no step waits for them."""

    def __init__(self) -> None:
        """Start at zero."""
        self.steps = self.taken = 0
        self.data_wait = self.teacher_wait = self.forward = 0.0
        self.sums: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Restart the clock: the time until now was not spent on training."""
        self.began = perf_counter()
        self.timed_from = self.steps

    def add(self, outcome: StepOutcome, fed: Fed) -> None:
        """Count a step. The losses of a step that was not taken are left out."""
        self.steps += 1
        self.data_wait += fed.data_wait
        self.teacher_wait += fed.teacher_wait
        self.forward += outcome.forward_s
        if outcome.status != "bad":
            self.taken += 1
            for name, share in outcome.shares.items():
                self.sums[name] = self.sums.get(name, torch.zeros_like(share)) + share

    def times(self, batch_size: int) -> dict[str, float]:
        """Return the mean seconds of a step and its waits, the waits as fractions of the step, and images a second."""
        seconds = (perf_counter() - self.began) / (self.steps - self.timed_from)
        waits = {"data_wait": self.data_wait / self.steps, "teacher_wait": self.teacher_wait / self.steps}
        return {
            "time/step_s": seconds,
            **{f"time/{name}_s": wait for name, wait in waits.items()},
            **{f"time/{name}_share": wait / seconds for name, wait in waits.items()},
            "throughput/images_per_s": batch_size / seconds,
        }

    def losses(self, workers: int, device: torch.device) -> Mapping[str, float]:
        """Return each loss of the global batches, averaged over the steps that were taken; empty if none was.

        Args:
            workers: number of workers, which all call it.
            device: device of the collective operation.
        """
        if not self.taken:
            return {}
        values = torch.stack(list(self.sums.values())).to(device) / self.taken
        if workers > 1:
            dist.all_reduce(values)
        return dict(zip(self.sums, values.tolist(), strict=True))

    @property
    def local_s(self) -> float:
        """Mean seconds of a step's work that is this worker's alone: waiting for its data, forward pass."""
        return (self.data_wait + self.teacher_wait + self.forward) / self.steps


def slowest(seconds: list[float]) -> dict[str, float]:
    """Find the slowest worker, which the others wait for.

    Args:
        seconds: each rank's `Meter.local_s`.

    Returns:
        Metrics; empty for a single worker.
    """
    if len(seconds) < 2:
        return {}
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    return {
        "time/slowest_rank": rank,
        "time/slowest_rank_s": seconds[rank],
        "time/median_rank_s": median(seconds),
    }
