"""The neck: a feature pyramid (Lin et al., CVPR 2017) over strides 8, 16, 32, and on by subsampling."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm: independent of the batch, so of its size and of its split over workers.

    Sixteen channels a group, since PyTorch's channels-last bfloat16 kernels are three times slower for fewer.
    """
    return nn.GroupNorm(max(1, channels // 16), channels)


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, GroupNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, group_norm(outputs), nn.ReLU(inplace=True))


class Neck(nn.Module):
    """Pyramid of `width` channels at strides 8, 16, 32, 64 and so on.

    Args:
        channels: of the backbone's maps at strides 8, 16, 32.
        width: output channels, a multiple of 16.
        levels: maps to make, at least as many as there are channels.
    """

    def __init__(self, channels: Sequence[int], width: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.pyramid = FeaturePyramidNetwork(list(channels), width, norm_layer=group_norm)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, channels[i], H/8/2**i, W/8/2**i) to maps (B, width, …) of all levels, fine to coarse."""
        pyramid = list(self.pyramid(OrderedDict((str(level), feature) for level, feature in enumerate(maps))).values())
        while len(pyramid) < self.levels:
            pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid
