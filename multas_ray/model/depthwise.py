"""Depthwise convolution whose gradients are computed in float32, and fast, on a CPU.

oneDNN has no fast kernels for some depthwise gradients: in bfloat16 those of strided and of 5x5 convolutions are 10 to
100 times slower than in float32, and the weight gradient of 5x5 is slow in float32 too. One bfloat16 step of an
EfficientNet would spend two thirds of its time there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GROUPED_SIDE = 16
"""Largest output side in pixels for which `_weight_gradient` takes an output gradient as a kernel."""


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve each channel with a kernel of its own.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, k, k).

    Returns:
        (B, C, H', W'), in the autocast type if there is one.
    """
    if x.is_cuda or not torch.is_grad_enabled():
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))
    return _Depthwise.apply(x, weight, stride, padding)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad[:2]
        stride, padding = ctx.stride, ctx.padding
        x32, g = x.float(), gradient.float()
        grouped = weight.shape[-1] > 3 and max(g.shape[-2:]) <= GROUPED_SIDE
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            g,
            x32,
            weight.float(),
            None,
            [stride, stride],
            [padding, padding],
            [1, 1],
            False,
            [0, 0],
            len(weight),
            [need_x, need_weight and not grouped, False],
        )
        if need_weight and grouped:
            grad_weight = _weight_gradient(x32, g, weight.shape[-1], stride, padding)
        return (
            None if grad_x is None else grad_x.to(x.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None,
        )


def _weight_gradient(x: Tensor, gradient: Tensor, k: int, stride: int, padding: int) -> Tensor:
    """The weight gradient as a forward depthwise convolution of B * C channels: x with the output gradient as its
    kernel, dilated by the stride. (C, 1, k, k)."""
    batch, channels, height, width = x.shape
    kernels = gradient.reshape(batch * channels, 1, *gradient.shape[-2:])
    each = F.conv2d(x.reshape(1, batch * channels, height, width), kernels, None, 1, padding, stride, batch * channels)
    return each[:, :, :k, :k].reshape(batch, channels, 1, k, k).sum(dim=0)
