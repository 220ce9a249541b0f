"""Detection heads: class logits and box codes of every anchor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multas_ray.model.neck import conv_block
from multas_ray.model.paper import ConvBlock, Norm
from multas_ray.tasks.detection.anchors import PER_CELL

PRIOR_BIAS = -math.log(99)
"""Every anchor starts at a probability of 0.01, so that the many negatives do not swamp the first steps
(focal loss, Lin et al., ICCV 2017)."""


class DetectionHead(nn.Module):
    """Class and box towers, shared by all pyramid levels (RetinaNet, Lin et al., ICCV 2017)."""

    def __init__(self, width: int, classes: int) -> None:
        """Build the towers for maps of `width` channels."""
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
        """Convert maps (B, width, h, w), fine to coarse, to class logits (B, A, C) and box codes (B, A, 4)."""
        cls = [per_anchor(self.cls(self.cls_tower(level)), self.classes) for level in pyramid]
        box = [per_anchor(self.box(self.box_tower(level)), 4) for level in pyramid]
        return torch.cat(cls, dim=1), torch.cat(box, dim=1)


class LevelwiseDetectionHead(nn.Module):
    """Class and box towers, separate for every pyramid level, as published (Le and Pham, BMVC 2023)."""

    def __init__(self, width: int, classes: int, levels: int, norm: Norm) -> None:
        """Build the towers of each of `levels` maps of `width` channels."""
        super().__init__()

        def tower(outputs: int) -> nn.Sequential:
            blocks = [ConvBlock(width, width, norm), ConvBlock(width, width, norm)]
            return nn.Sequential(*blocks, nn.Conv2d(width, outputs, 1))

        self.classes = classes
        self.box = nn.ModuleList(tower(PER_CELL * 4) for _ in range(levels))
        self.cls = nn.ModuleList(tower(PER_CELL * classes) for _ in range(levels))
        for name, parameter in self.cls.named_parameters():
            if name.endswith("2.bias"):
                nn.init.constant_(parameter, PRIOR_BIAS)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Convert maps (B, width, h, w), fine to coarse, to class logits (B, A, C) and box codes (B, A, 4)."""
        cls = [per_anchor(tower(level), self.classes) for tower, level in zip(self.cls, pyramid, strict=True)]
        box = [per_anchor(tower(level), 4) for tower, level in zip(self.box, pyramid, strict=True)]
        return torch.cat(cls, dim=1), torch.cat(box, dim=1)


def per_anchor(output: Tensor, channels: int) -> Tensor:
    """Reorder a head's map (B, 6 * channels, h, w) to (B, h * w * 6, channels): the order of `anchors`."""
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, channels)


def cells(pyramid: Sequence[Tensor]) -> Tensor:
    """Flatten maps (B, F, h, w), fine to coarse, to one vector a cell: (B, sum of h * w, F)."""
    return torch.cat([level.flatten(2) for level in pyramid], dim=2).transpose(1, 2)
