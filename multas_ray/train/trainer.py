"""The network and all that changes with it from step to step. Plain PyTorch, in one process or in several."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multas_ray.checkpoint.weights import load_weights
from multas_ray.config import Config, Task
from multas_ray.data.batch import TrainBatch
from multas_ray.errors import UserError, quoted
from multas_ray.model.network import MultiTaskNet
from multas_ray.model.precision import autocast
from multas_ray.teacher.teacher import SoftTargets, to_tensors
from multas_ray.train.optim import Ema, build_optimizer, learning_rate, load_optimizer
from multas_ray.train.step import loss_terms, term_weights, total_loss


@dataclass
class StepOutcome:
    """What one step did on this worker."""

    shares: dict[str, Tensor]
    """Each loss's share (see `total_loss`)."""
    status: Literal["taken", "rescaled", "bad"]
    """`bad` where the loss of some worker or the gradient was not finite: nothing has changed then, on any worker.
    `rescaled` where the gradient overflowed float16: the step is skipped too, and the scaler lowers its scale."""
    finite: bool
    """Whether this worker's own losses were finite."""
    forward_s: float
    """Seconds of the work that waits for no other worker."""


class Trainer:
    """Network, optimiser, moving average and their step."""

    def __init__(
        self,
        config: Config,
        classes: Mapping[Task, Sequence[str]],
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        """Build everything from the configuration's seed.

        Args:
            wrap: moves the network to the device and, where there are several workers, makes it a DDP module.
        """
        self.config = config
        self.device = device
        torch.manual_seed(config.train.seed)
        network = MultiTaskNet(config.model, classes)
        self.model = wrap(network)
        # DDP keeps the network that it wraps as `module`.
        self.network: MultiTaskNet = network if self.model is network else self.model.module  # type: ignore[assignment]
        self.network.config.pretrained = False
        self.optimizer = build_optimizer(self.network, config.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "float16")
        self.ema = Ema(self.network, config.optim)
        self.weights = term_weights(config)
        self.bad_steps = 0
        """Steps so far that were not taken."""

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "model": self.network.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bad_steps": self.bad_steps,
        }

    def load(self, state: Mapping[str, Any], source: str) -> None:
        """Go on from a `state`.

        Raises:
            UserError: it is of another network or optimiser, or broken; names the source.
        """
        own = self.state()
        lacking = sorted(own.keys() - state.keys())
        if lacking:
            raise UserError(f"{source}: not a run's state: lacks {', '.join(lacking)}")
        load_weights(self.network, state["model"], source)
        load_weights(self.ema.model, state["ema"], source)
        load_optimizer(self.optimizer, state["optimizer"], source)
        scaler, bad_steps = state["scaler"], state["bad_steps"]
        if not isinstance(scaler, dict) or scaler.keys() != own["scaler"].keys() or not _counts(*scaler.values()):
            raise UserError(f"{source}: its loss scale is none, or of another train.precision")
        if not _counts(bad_steps):
            raise UserError(f"{source}: bad_steps is no number: {quoted(bad_steps)}")
        self.scaler.load_state_dict(scaler)
        self.bad_steps = bad_steps

    def step(self, batch: TrainBatch, soft: SoftTargets, step: int, workers: int) -> StepOutcome:
        """Take one optimiser step on this worker's part of a global batch; all workers call it.

        Args:
            batch: of the data stream.
            soft: the soft targets of the rows `batch.distil`.
            step: counted from 0.
        """
        clock = _Clock(self.device)
        optim = self.config.optim
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, optim.lr, optim.warmup_steps, self.config.train.steps)
        self.model.train()
        targets = to_tensors(soft, self.device)
        with autocast(self.device, self.config.train.precision):
            terms = loss_terms(self.model, batch, targets, self.config, self.device)
        clock.stop()
        total, shares, bad_workers = total_loss(terms, self.weights, workers)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        # Of gradients that all workers share: all come to the same decision.
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        own = torch.stack([share.isfinite().all() for share in shares.values()]).all()
        finite, loss_ok, gradient_ok = torch.stack([own, bad_workers == 0, norm.isfinite()]).tolist()
        status: Literal["taken", "rescaled", "bad"] = "taken"
        if loss_ok and gradient_ok:
            if optim.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, optim.clip_norm, norm)
            self.scaler.step(self.optimizer)
            self.ema.update(self.network, step + 1)
        elif loss_ok and self.scaler.is_enabled():
            # An overflow of float16: `update` lowers the scale.
            status = "rescaled"
        else:
            status = "bad"
            self._forget_statistics()
            self.bad_steps += 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepOutcome(shares, status, finite, clock.seconds())

    @torch.no_grad()
    def _forget_statistics(self) -> None:
        """Put batch statistics that a bad forward pass has spoilt back to their moving average."""
        average = dict(self.ema.model.named_buffers())
        for name, buffer in self.network.named_buffers():
            if not buffer.isfinite().all():
                buffer.copy_(average[name])


def _counts(*values: object) -> bool:
    """Whether these are numbers from 0 on."""
    return all(isinstance(value, int | float) and 0 <= value < math.inf for value in values)


class _Clock:
    """Takes the time of work on a device, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self.began = self.ended = perf_counter()
        for event in self.events[:1]:
            event.record()

    def stop(self) -> None:
        self.ended = perf_counter()
        for event in self.events[1:]:
            event.record()

    def seconds(self) -> float:
        """What lay between start and stop; on a GPU, after something else has waited for both."""
        return self.events[0].elapsed_time(self.events[1]) / 1000 if self.events else self.ended - self.began
