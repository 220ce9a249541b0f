"""Optimiser, learning-rate schedule and the moving average of the weights."""

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn

from multas_ray.checkpoint.weights import check_tensor
from multas_ray.config import OptimConfig
from multas_ray.errors import UserError, quoted
from multas_ray.model.network import MultiTaskNet


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build AdamW or SGD. Tensors of one dimension (biases, normalisation) are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Fused: one kernel for all of a tensor's arithmetic. On a CPU AdamW takes a third of the time (3.4 million
    # parameters: 3.4 ms instead of 10).
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: object, source: str) -> None:
    """Load the state of an optimiser of the same kind and parameters. Settings such as weight decay are not loaded.

    Args:
        optimizer: optimiser to load into.
        state: its state dict.
        source: name of the state's file in messages.

    Raises:
        UserError: the state is of another optimiser, or not finite; names the source.
    """
    moments = state.get("state") if isinstance(state, Mapping) else None
    if not isinstance(moments, Mapping):
        raise UserError(f"{source}: holds no state of an optimiser")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for place, values in moments.items():
        if place not in range(len(parameters)) or not isinstance(values, Mapping) or values.keys() != names:
            raise UserError(f"{source}: its optimiser is another one: see its parameter {quoted(place)}")
        for name, value in values.items():
            like = torch.zeros((), dtype=torch.float32) if name == "step" else parameters[place]
            check_tensor(value, like, f"{source}: the optimiser's '{name}' of parameter {place}")
    optimizer.load_state_dict({"state": dict(moments), "param_groups": optimizer.state_dict()["param_groups"]})


def learning_rate(step: int, base: float, warmup: int, total: int) -> float:
    """Compute the learning rate: linear from base/10 to base in `warmup` steps, then a cosine to base/10 at `total`."""
    if step < warmup:
        return base * (0.1 + 0.9 * step / warmup)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return base * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def ema_decay(updates: int, decay: float, warmup: float) -> float:
    """Compute the decay of the moving average at its `updates`-th update: decay * (1 - exp(-updates / warmup))."""
    return decay * (1 - math.exp(-updates / warmup))


class Ema:
    """Exponential moving average of a model's parameters and buffers, which is evaluated and saved as the network."""

    def __init__(self, model: MultiTaskNet, config: OptimConfig) -> None:
        """Start the average from a copy of the model."""
        self.model: MultiTaskNet = copy.deepcopy(model).eval().requires_grad_(False)
        self.config = config

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Update the average by the model's weights after its `updates`-th step (counted from 1)."""
        weight = 1 - ema_decay(updates, self.config.ema_decay, self.config.ema_warmup)
        average, new = self.model.state_dict(), model.state_dict()
        floats = [key for key, value in average.items() if value.is_floating_point()]
        torch._foreach_lerp_([average[key] for key in floats], [new[key] for key in floats], weight)
        for key in average.keys() - set(floats):
            average[key].copy_(new[key])
