"""The two heads: boxes and classes for every anchor, and a class for every stride-4 pixel."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multas_ray.model.neck import group_norm
from multas_ray.tasks.detection.anchors import PER_CELL

PRIOR_BIAS = -math.log(99)
"""Every anchor starts at a probability of 0.01, so that the many negatives do not swamp the first steps
(focal loss, Lin et al., ICCV 2017)."""


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, GroupNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, group_norm(outputs), nn.ReLU(inplace=True))


class DetectionHead(nn.Module):
    """Class and box towers, shared by all pyramid levels (RetinaNet, Lin et al., ICCV 2017)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.cls_tower = nn.Sequential(conv_block(width, width), conv_block(width, width))
        self.box_tower = nn.Sequential(conv_block(width, width), conv_block(width, width))
        self.cls = nn.Conv2d(width, PER_CELL * classes, 3, padding=1)
        self.box = nn.Conv2d(width, PER_CELL * 4, 3, padding=1)
        for conv in (self.cls, self.box):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.cls.bias, PRIOR_BIAS)  # type: ignore[arg-type]

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, width, h, w), fine to coarse, to class logits (B, A, C) and box codes (B, A, 4)."""
        cls = [per_anchor(self.cls(self.cls_tower(level)), self.classes) for level in pyramid]
        box = [per_anchor(self.box(self.box_tower(level)), 4) for level in pyramid]
        return torch.cat(cls, dim=1), torch.cat(box, dim=1)


def per_anchor(output: Tensor, channels: int) -> Tensor:
    """A head's map (B, 6 * channels, h, w) to (B, h * w * 6, channels): the order of `anchors`."""
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, channels)


class SegmentationHead(nn.Module):
    """Semantic branch of a feature pyramid (Kirillov et al., CVPR 2019), cut down: all levels are added at stride 8.

    It leaves out the backbone's stride-4 map. On 828 real images that made the loss fall more slowly, and it costs.
    """

    stride = 4

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.merge = conv_block(width, width)
        self.refine = conv_block(width, width)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Maps (B, width, h, w), stride 8 and coarser, to logits (B, C, H/4, W/4)."""
        finest, *coarser = pyramid
        total = finest + sum(_resize(level, finest.shape[-2:]) for level in coarser)
        height, width = finest.shape[-2:]
        return self.classify(self.refine(_resize(self.merge(total), (2 * height, 2 * width))))


def _resize(feature: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(feature, size=list(size), mode="bilinear", align_corners=False)
