"""Running sums between two log lines."""

from collections.abc import Mapping
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor

from multas_ray.teacher.feed import Fed
from multas_ray.train.trainer import StepOutcome


class Meter:
    """Losses and times of some steps. Losses stay on the device, so that no step waits for them."""

    def __init__(self) -> None:
        self.steps = self.taken = 0
        self.data_wait = self.teacher_wait = self.forward = 0.0
        self.sums: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Take the time from here: what came before was no training."""
        self.began = perf_counter()
        self.timed_from = self.steps

    def add(self, outcome: StepOutcome, fed: Fed) -> None:
        """Count a step. The losses of one that was not taken are left out."""
        self.steps += 1
        self.data_wait += fed.data_wait
        self.teacher_wait += fed.teacher_wait
        self.forward += outcome.forward_s
        if outcome.status != "bad":
            self.taken += 1
            for name, share in outcome.shares.items():
                self.sums[name] = self.sums.get(name, torch.zeros_like(share)) + share

    def times(self, batch_size: int) -> dict[str, float]:
        """A step's mean seconds, in all and waiting, the waits' shares of it, and images a second."""
        seconds = (perf_counter() - self.began) / (self.steps - self.timed_from)
        waits = {"data_wait": self.data_wait / self.steps, "teacher_wait": self.teacher_wait / self.steps}
        return {
            "time/step_s": seconds,
            **{f"time/{name}_s": wait for name, wait in waits.items()},
            **{f"time/{name}_share": wait / seconds for name, wait in waits.items()},
            "throughput/images_per_s": batch_size / seconds,
        }

    def losses(self, workers: int, device: torch.device) -> Mapping[str, float]:
        """Each loss over the global batches, a taken step's mean; nothing if no step was taken."""
        if not self.taken:
            return {}
        values = torch.stack(list(self.sums.values())).to(device) / self.taken
        if workers > 1:
            dist.all_reduce(values)
        return dict(zip(self.sums, values.tolist(), strict=True))

    @property
    def own_s(self) -> float:
        """A step's mean seconds of what this worker does without the others: waiting for its data, forward pass."""
        return (self.data_wait + self.teacher_wait + self.forward) / self.steps


def slowest(own: list[float]) -> dict[str, float]:
    """The worker that the others wait for, from each rank's `Meter.own_s`; nothing of a single worker."""
    if len(own) < 2:
        return {}
    rank = max(range(len(own)), key=own.__getitem__)
    return {
        "time/slowest_rank": rank,
        "time/slowest_rank_s": own[rank],
        "time/median_rank_s": median(own),
    }
