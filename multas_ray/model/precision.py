"""Types of numbers: autocast, what a device computes in hardware, and what losses are computed in."""

import platform
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to float32 (none), bfloat16 or float16."""
    return torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32")


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes bfloat16 in hardware, where a training step takes less time than in float32.

    On a CPU, oneDNN decides; but it also says yes to AVX-512 without bfloat16 instructions. A training step of
    EfficientNet-Lite0 at 96 pixels takes there 31 ms an image in bfloat16 and 19 in float32; with AVX2 alone 286 and
    20; with AVX-512 and bfloat16 12 and 20.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_avx512_bf16_supported()


def bfloat16_slowdown(device: torch.device) -> float:
    """How many times as long as in float32 a convolution takes in bfloat16, forward and backward, measured."""
    images = torch.randn(8, 32, 48, 48, device=device, requires_grad=True)
    kernels = torch.randn(32, 32, 3, 3, device=device)

    def seconds(precision: str) -> float:
        began = perf_counter()
        with autocast(device, precision):
            output = F.conv2d(images, kernels, padding=1)
        # `item` waits for the device.
        output.float().sum().backward()
        assert images.grad is not None
        images.grad.sum().item()
        return perf_counter() - began

    times = {precision: min(seconds(precision) for _ in range(3)) for precision in ("float32", "bfloat16")}
    return times["bfloat16"] / times["float32"]
