"""Types of numbers: autocast, and what losses are computed in."""

import torch
from torch import Tensor


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to float32 (none), bfloat16 or float16."""
    return torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32")


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
