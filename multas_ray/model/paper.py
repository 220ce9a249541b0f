"""Parts of the published network (Le and Pham, BMVC 2023) that the default preset replaces by cheaper ones.

The published backbone is a ResNet without the stem's max-pool, so that the last two stages have strides 8 and 16.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from multas_ray.model.backbones import norm_layer
from multas_ray.model.neck import group_norm

SLOPE = 0.1
"""Negative slope of every LeakyReLU."""
Norm = Callable[[int], nn.Module]
"""Function that makes a normalisation layer of a number of channels."""


def paper_norm(name: str) -> Norm:
    """Choose the normalisation of neck and heads: the backbone's, but GroupNorm where that is frozen.

    Nothing of theirs was trained that could be frozen.
    """
    return norm_layer(name) if name in ("batch", "sync") else group_norm


class ConvNorm(nn.Module):
    """Convolution and normalisation."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, *, kernel: int = 3, stride: int = 1) -> None:
        """Build the layers.

        Args:
            inputs: channels of the input.
            outputs: channels of the output.
            norm: makes the normalisation layer.
            kernel: side of the kernel in pixels.
            stride: stride of the convolution.
        """
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        nn.init.kaiming_normal_(self.conv.weight, a=SLOPE, mode="fan_out")
        self.norm = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, outputs, ceil(h / stride), ceil(w / stride)) from (B, inputs, h, w)."""
        normalised: Tensor = self.norm(self.conv(x))
        return normalised


class ConvBlock(ConvNorm):
    """Convolution, normalisation and LeakyReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, outputs, ceil(h / stride), ceil(w / stride)) from (B, inputs, h, w)."""
        return F.leaky_relu(super().forward(x), SLOPE, inplace=True)


class ContextNeck(nn.Module):
    """Context enhancement, followed by a feature pyramid.

    The backbone's maps and the global average of the last one are fused at stride 8, and the pyramid is grown from the
    sum by strided convolutions. Its connections are top-down (FPN, Lin et al., CVPR 2017) or top-down and bottom-up
    (PAFPN, Liu et al., CVPR 2018).
    """

    def __init__(self, channels: Sequence[int], width: int, levels: int, bottom_up: bool, norm: Norm) -> None:
        """Build the layers.

        Args:
            channels: channels of the backbone's maps of strides 8, 16, ….
            width: channels of the output.
            levels: number of levels of the pyramid.
            bottom_up: PAFPN instead of FPN.
            norm: makes the normalisation layers.
        """
        super().__init__()

        def blocks(count: int, kernel: int = 3, stride: int = 1) -> nn.ModuleList:
            return nn.ModuleList(ConvBlock(width, width, norm, kernel=kernel, stride=stride) for _ in range(count))

        self.fuse = nn.ModuleList(ConvNorm(c, width, norm, kernel=1) for c in channels)
        self.context = ConvNorm(channels[-1], width, norm, kernel=1)
        self.grow = blocks(1) + blocks(levels - 1, stride=2)
        self.lateral = blocks(levels, kernel=1)
        self.smooth = blocks(levels)
        self.shrink = blocks(levels - 1, stride=2) if bottom_up else None
        self.refine = blocks(levels) if bottom_up else None

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute maps (B, width, …) of all levels, fine to coarse, from maps (B, channels[i], H/8/2**i, W/8/2**i)."""
        size = maps[0].shape[-2:]
        fused = sum(nearest(fuse(feature), size) for fuse, feature in zip(self.fuse, maps, strict=True))
        x = F.leaky_relu(fused + self.context(F.adaptive_avg_pool2d(maps[-1], 1)), SLOPE)
        pyramid = []
        for grow, lateral in zip(self.grow, self.lateral, strict=True):
            x = grow(x)
            pyramid.append(lateral(x))
        for finer in reversed(range(len(pyramid) - 1)):
            pyramid[finer] = pyramid[finer] + nearest(pyramid[finer + 1], pyramid[finer].shape[-2:])
        pyramid = [smooth(level) for smooth, level in zip(self.smooth, pyramid, strict=True)]
        if self.shrink is None or self.refine is None:
            return pyramid
        for finer, shrink in enumerate(self.shrink):
            pyramid[finer + 1] = pyramid[finer + 1] + shrink(pyramid[finer])
        return [refine(level) for refine, level in zip(self.refine, pyramid, strict=True)]


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, h, w) by repeating pixels."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, size=list(size), mode="nearest")
