"""The neck: a feature pyramid (Lin et al., CVPR 2017) over strides 8, 16, 32, and 64 by subsampling."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm: independent of the batch, so of its size and of its split over workers.

    Sixteen channels a group, since PyTorch's channels-last bfloat16 kernels are three times slower for fewer.
    """
    return nn.GroupNorm(channels // 16, channels)


class Neck(nn.Module):
    """Pyramid of `width` channels at strides 8, 16, 32, 64.

    Args:
        channels: of the backbone's maps at strides 8, 16, 32.
        width: output channels, a multiple of 16.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(
            list(channels), width, extra_blocks=LastLevelMaxPool(), norm_layer=group_norm
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, channels[i], H/8/2**i, W/8/2**i) to four maps (B, width, …), fine to coarse."""
        named = OrderedDict((str(level), feature) for level, feature in enumerate(maps))
        return list(self.pyramid(named).values())
