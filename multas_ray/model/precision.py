"""Precision of computation: autocast, the types that a device computes in hardware, and the type of losses."""

import platform
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Make the autocast context of a precision: bfloat16, float16, or float32, which casts nothing."""
    return torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; return float32 and float64 unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes bfloat16 in hardware, where a training step takes less time than in float32.

    On a CPU, oneDNN decides; but it also accepts AVX-512 without bfloat16 instructions, where a training step of
    EfficientNet-Lite0 at 96 pixels takes 31 ms an image in bfloat16 and 19 in float32. With AVX2 alone it takes 286 and
    20; with AVX-512 and bfloat16 instructions 12 and 20.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return platform.machine() not in ("x86_64", "AMD64") or bool(torch.cpu._is_avx512_bf16_supported())


def bfloat16_slowdown(device: torch.device) -> float:
    """Measure the time of a convolution in bfloat16, forward and backward, as a multiple of its time in float32."""
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
