"""Network, optimiser and moving average, and their step. Plain PyTorch, in one process or in several."""

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
    """Outcome of a step on this worker."""

    shares: dict[str, Tensor]
    """Share of each loss, see `total_loss`."""
    status: Literal["taken", "rescaled", "bad"]
    """`bad`: the loss of some worker or the gradient was not finite, and nothing has changed on any worker. `rescaled`:
    the gradient overflowed float16; the step is skipped too, and the scaler lowers its scale."""
    finite: bool
    """Whether this worker's own losses were finite."""
    forward_s: float
    """Seconds of the forward pass and the losses, in which a worker waits for no other."""


class Trainer:
    """Network, optimiser, loss scaler and moving average of a run."""

    def __init__(
        self,
        config: Config,
        classes: Mapping[Task, Sequence[str]],
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        """Build everything from the configuration's seed.

        Args:
            config: configuration of the run.
            classes: names of each task's classes.
            device: device of the training.
            wrap: function that moves the network to the device and, with several workers, makes it a DDP module.
        """
        self.config = config
        self.device = device
        torch.manual_seed(config.train.seed)
        network = MultiTaskNet(config.model, classes)
        self.model = wrap(network)
        # DDP has the wrapped network as `module`.
        self.network: MultiTaskNet = network if self.model is network else self.model.module  # type: ignore[assignment]
        self.optimizer = build_optimizer(self.network, config.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "float16")
        self.ema = Ema(self.network, config.optim)
        self.weights = term_weights(config)
        self.bad_steps = 0
        """Number of steps so far that were skipped as bad."""

    def state(self) -> dict[str, Any]:
        """Return everything that a run needs to resume."""
        return {
            "model": self.network.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bad_steps": self.bad_steps,
        }

    def load(self, state: Mapping[str, Any], source: str) -> None:
        """Resume from a state.

        Args:
            state: result of `state`.
            source: name of the state in errors.

        Raises:
            UserError: the state is broken, or of another network or optimiser; names the source.
        """
        current = self.state()
        missing = sorted(current.keys() - state.keys())
        if missing:
            raise UserError(f"{source}: not a run's state: lacks {', '.join(missing)}")
        load_weights(self.network, state["model"], source)
        load_weights(self.ema.model, state["ema"], source)
        load_optimizer(self.optimizer, state["optimizer"], source)
        scaler, bad_steps = state["scaler"], state["bad_steps"]
        if not isinstance(scaler, dict) or scaler.keys() != current["scaler"].keys() or not _counts(*scaler.values()):
            raise UserError(f"{source}: its loss scale is none, or of another train.precision")
        if not _counts(bad_steps):
            raise UserError(f"{source}: bad_steps is no number: {quoted(bad_steps)}")
        self.scaler.load_state_dict(scaler)
        self.bad_steps = bad_steps

    def step(self, batch: TrainBatch, soft: SoftTargets, step: int, workers: int) -> StepOutcome:
        """Take one optimiser step on this worker's part of a global batch; all workers call it.

        Args:
            batch: batch of the training stream.
            soft: soft targets of the rows `batch.distil`.
            step: number of the step, counted from 0.
            workers: number of workers.
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
        # The gradients are those of all workers by now, so all workers decide alike.
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        local_ok = torch.stack([share.isfinite().all() for share in shares.values()]).all()
        finite, loss_ok, gradient_ok = torch.stack([local_ok, bad_workers == 0, norm.isfinite()]).tolist()
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
        """Reset batch statistics that are not finite after a bad forward pass to their moving average."""
        average = dict(self.ema.model.named_buffers())
        for name, buffer in self.network.named_buffers():
            if not buffer.isfinite().all():
                buffer.copy_(average[name])


def _counts(*values: object) -> bool:
    """Return whether all values are finite numbers from 0 on."""
    return all(isinstance(value, int | float) and 0 <= value < math.inf for value in values)


class _Clock:
    """Clock for work on a device, which never waits for the work."""

    def __init__(self, device: torch.device) -> None:
        """Start the clock."""
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self.began = self.ended = perf_counter()
        for event in self.events[:1]:
            event.record()

    def stop(self) -> None:
        """Stop the clock."""
        self.ended = perf_counter()
        for event in self.events[1:]:
            event.record()

    def seconds(self) -> float:
        """Return the seconds between start and stop. On a GPU, both must have been reached: something waits before."""
        return self.events[0].elapsed_time(self.events[1]) / 1000 if self.events else self.ended - self.began
