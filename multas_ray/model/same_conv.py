"""Convolution padded as TensorFlow's "same", with fast depthwise gradients on a CPU.

oneDNN has no fast kernels for some depthwise gradients. In bfloat16 that of a strided convolution's input is 30 times
slower than the same as another convolution, and two thirds of a training step of an EfficientNet would be spent there;
the weight gradient of 5x5 kernels at stride 1 is slow in every type. `_Depthwise` computes these as other convolutions.
Strided ones in float32 are left to oneDNN, with AVX-512 as with AVX2: the input gradients of EfficientNet-Lite0's
depthwise layers (96 pixels, 16 images, one core) take it 9 and 10 ms together, as other convolutions 17 and 24.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GROUPED_SIDE = 40
"""Largest output side in pixels for which an output gradient is used as a kernel. Measured up to this size (images of
320 pixels): 1.5 to 3 times as fast as oneDNN in either type."""


def same_conv2d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve without bias, dense or depthwise. At stride 2 one pixel less is padded before than after.

    Args:
        x: (B, C, H, W), H and W even at stride 2.
        weight: (C', C, k, k), dense, or (C, 1, k, k), depthwise; k odd, k >= 3 at stride 2.
        stride: 1 or 2.

    Returns:
        (B, C', H / stride, W / stride), in the autocast type if there is one.
    """
    depthwise = weight.shape[1] == 1
    if depthwise and torch.is_grad_enabled() and not x.is_cuda and _slow_gradients(x, stride):
        output: Tensor = _Depthwise.apply(x, weight, stride)
        return output
    return _forward(x, weight, stride, groups=len(weight) if depthwise else 1)


def _slow_gradients(x: Tensor, stride: int) -> bool:
    """Whether oneDNN is slow at some gradient of this depthwise convolution."""
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return stride == 1 or kind in (torch.bfloat16, torch.float16)


def _forward(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    padding = weight.shape[-1] // 2
    if stride == 1:
        return F.conv2d(x, weight, None, 1, padding, groups=groups)
    # With one pixel more on all sides, windows start one stride early: dropping the first ones leaves the wanted ones,
    # cheaper than a padded copy of the input.
    early = F.conv2d(x, weight, None, 2, padding + 1, groups=groups)
    return early[:, :, 1:, 1:].contiguous(memory_format=torch.channels_last)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _forward(x, weight, stride, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(gradient, weight, ctx.stride).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(gradient, x.to(gradient.dtype), weight.shape, ctx.stride).to(weight.dtype)
        return grad_x, grad_weight, None


def _input_gradient(gradient: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve the output gradient, spread over the input's pixels, with the kernel turned by 180 degrees."""
    if stride == 2:
        batch, channels, height, width = gradient.shape
        spread = gradient.new_zeros(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)  # channels last
        spread[:, :, 1::2, 1::2] = gradient
        gradient = spread
    kernel = weight.flip(2, 3).to(gradient.dtype)
    return F.conv2d(gradient, kernel, None, 1, weight.shape[-1] // 2, groups=len(weight))


def _weight_gradient(gradient: Tensor, x: Tensor, shape: torch.Size, stride: int) -> Tensor:
    channels, _, k, _ = shape
    batch, _, height, width = gradient.shape
    padding = k // 2
    if stride == 2:
        x = F.pad(x, (padding - 1, padding, padding - 1, padding))
        padding = 0
    if k > 3 and max(height, width) <= GROUPED_SIDE:
        # A forward convolution of B * C channels: the input, with the output gradient as its kernel.
        kernels = gradient.reshape(batch * channels, 1, height, width)
        images = x.reshape(1, batch * channels, *x.shape[-2:])
        each = F.conv2d(images, kernels, None, 1, padding, stride, batch * channels)
        return each.reshape(batch, channels, 1, k, k).sum(dim=0, dtype=torch.float32)
    if k > 3:
        x, gradient = x.float(), gradient.float()
    arguments = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], channels, [False, True, False])
    _, grad_weight, _ = torch.ops.aten.convolution_backward(gradient, x, x.new_empty(shape), None, *arguments)
    assert isinstance(grad_weight, Tensor)
    return grad_weight
