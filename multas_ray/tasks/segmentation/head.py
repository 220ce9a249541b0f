"""Segmentation heads: a class for every pixel of stride 4, or of stride 1."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multas_ray.model.neck import conv_block
from multas_ray.model.paper import ConvBlock, Norm, nearest


class SegmentationHead(nn.Module):
    """Semantic branch of a feature pyramid (Kirillov et al., CVPR 2019), reduced: all levels are added at stride 8.

    It leaves out the backbone's stride-4 map. On 828 real images that made the loss fall more slowly, and it costs.
    """

    stride = 4

    def __init__(self, width: int, classes: int) -> None:
        """Build the branch for maps of `width` channels."""
        super().__init__()
        self.classes = classes
        self.merge = conv_block(width, width)
        self.refine = conv_block(width, width)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Convert maps (B, width, h, w), stride 8 and coarser, to logits (B, C, H/4, W/4)."""
        finest, *coarser = pyramid
        total = finest + sum(_resize(level, finest.shape[-2:]) for level in coarser)
        height, width = finest.shape[-2:]
        logits: Tensor = self.classify(self.refine(_resize(self.merge(total), (2 * height, 2 * width))))
        return logits


class FullResolutionSegmentationHead(nn.Module):
    """Semantic branch of a feature pyramid (Kirillov et al., CVPR 2019), at full resolution.

    Each level is brought to stride 4 by convolutions and doublings; their sum is enlarged to full resolution and
    refined there by three more convolutions.
    """

    stride = 1

    def __init__(self, width: int, classes: int, levels: int, norm: Norm) -> None:
        """Build the branch for `levels` maps of `width` channels."""
        super().__init__()
        half = width // 2

        def blocks(count: int, inputs: int = half) -> nn.ModuleList:
            return nn.ModuleList(ConvBlock(half if number else inputs, half, norm) for number in range(count))

        self.classes = classes
        self.rise = nn.ModuleList(blocks(level + 1, width) for level in range(levels))
        self.refine = nn.Sequential(*blocks(3))
        self.classify = nn.Conv2d(half, classes, 1, bias=False)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Convert maps (B, width, h, w), stride 8 and coarser, to logits (B, C, H, W)."""
        height, width = pyramid[0].shape[-2:]
        sizes = [(2 * height, 2 * width), *(level.shape[-2:] for level in pyramid)]
        maps = []
        for level, (blocks, x) in enumerate(zip(self.rise, pyramid, strict=True)):
            assert isinstance(blocks, nn.ModuleList)
            for block, size in zip(blocks, reversed(sizes[: level + 1]), strict=True):
                x = nearest(block(x), size)
            maps.append(x)
        total = torch.stack(maps).sum(dim=0)
        logits: Tensor = self.classify(self.refine(nearest(total, (8 * height, 8 * width))))
        return logits


def _resize(feature: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(feature, size=list(size), mode="bilinear", align_corners=False)
