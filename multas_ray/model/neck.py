"""Neck: a feature pyramid (Lin et al., CVPR 2017) over strides 8, 16, 32, continued by subsampling."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork


def group_norm(channels: int) -> nn.GroupNorm:
    """Make a GroupNorm, which does not depend on the batch: neither on its size nor on its split over workers.

    Sixteen channels a group, since PyTorch's channels-last bfloat16 kernels are three times slower for fewer.
    """
    return nn.GroupNorm(max(1, channels // 16), channels)


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, GroupNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, group_norm(outputs), nn.ReLU(inplace=True))


class Neck(nn.Module):
    """Feature pyramid of strides 8, 16, 32, 64 and so on."""

    def __init__(self, channels: Sequence[int], width: int, levels: int) -> None:
        """Build the pyramid.

        Args:
            channels: channels of the backbone's maps of strides 8, 16, 32.
            width: channels of the output, a multiple of 16.
            levels: number of output maps, at least that of the input maps.
        """
        super().__init__()
        self.levels = levels
        self.pyramid = FeaturePyramidNetwork(list(channels), width, norm_layer=group_norm)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute maps (B, width, …) of all levels, fine to coarse, from maps (B, channels[i], H/8/2**i, W/8/2**i)."""
        pyramid = list(self.pyramid(OrderedDict((str(level), feature) for level, feature in enumerate(maps))).values())
        while len(pyramid) < self.levels:
            pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid
