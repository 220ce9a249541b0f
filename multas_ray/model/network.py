"""The multi-task network: one backbone and neck, a head for each task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multas_ray.config import ModelConfig
from multas_ray.errors import UserError
from multas_ray.model.backbones import build_backbone, norm_layer
from multas_ray.model.heads import DetectionHead, SegmentationHead
from multas_ray.model.neck import Neck, group_norm
from multas_ray.model.paper import ContextNeck, FullResolutionSegmentationHead, LevelwiseDetectionHead
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.detection.anchors import PER_CELL, anchors


class MultiTaskNet(nn.Module):
    """Detects objects and segments images from shared features.

    Args:
        config: the network's section of the configuration.
        det_classes: names of the detection classes; ignored without the task `det`.
        seg_classes: names of the segmentation classes, in order of the mask's values; ignored without the task `seg`.

    Raises:
        UserError: a task has no classes, or pretrained weights cannot be had.
    """

    def __init__(self, config: ModelConfig, det_classes: Sequence[str], seg_classes: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.tasks = tuple(config.tasks)
        self.det_classes = tuple(det_classes) if "det" in self.tasks else ()
        self.seg_classes = tuple(seg_classes) if "seg" in self.tasks else ()
        for task, classes in (("det", self.det_classes), ("seg", self.seg_classes)):
            if task in self.tasks and not classes:
                raise UserError(f"model.tasks: has {task}, but the data set has no {task}_classes")

        paper = config.preset == "paper"
        self.backbone = build_backbone(config.backbone, config.pretrained, config.norm, stem_pool=not paper)
        self.levels = config.levels or 4
        width = config.width
        self.det_head: DetectionHead | LevelwiseDetectionHead | None = None
        self.seg_head: SegmentationHead | FullResolutionSegmentationHead | None = None
        if paper:
            norm = norm_layer(config.norm) if config.norm in ("batch", "sync") else group_norm
            self.neck: nn.Module = ContextNeck(
                self.backbone.channels, width, self.levels, bottom_up=config.neck == "pafpn", norm=norm
            )
            if self.det_classes:
                self.det_head = LevelwiseDetectionHead(width, len(self.det_classes), self.levels, norm)
            if self.seg_classes:
                self.seg_head = FullResolutionSegmentationHead(width, len(self.seg_classes), self.levels, norm)
        else:
            self.neck = Neck(self.backbone.channels, width, self.levels)
            if self.det_classes:
                self.det_head = DetectionHead(width, len(self.det_classes))
            if self.seg_classes:
                self.seg_head = SegmentationHead(width, len(self.seg_classes))
        self.adapters = None
        if config.adapter is not None:
            self.adapters = nn.ModuleList(nn.Conv2d(width, config.adapter, 1) for _ in range(self.levels))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(self.backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(self.backbone.std).view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        det_rows: Tensor | None = None,
        seg_rows: Tensor | None = None,
        *,
        features: bool = False,
    ) -> dict[str, Tensor]:
        """Run the shared features on every image and each head on its rows only.

        Args:
            images: (B, 3, H, W) uint8 RGB, or float that is normalised already; B >= 1, H and W multiples of 32.
            det_rows, seg_rows: (Bd,), (Bs,) long, rows of the batch that the head is run on, in this order; None: all.
                With no row at all the outputs are empty, but still connected to every parameter (zero gradients), so
                that all workers of a distributed step reduce the same gradients.
            features: return the detection rows' features as well.

        Returns:
            float32 (float64 of a float64 network), of the tasks present: "cls" (Bd, A, C) logits and "box" (Bd, A, 4)
            codes, in the order of `anchors`; "seg" (Bs, C, H/s, W/s) logits, s the segmentation head's stride; with
            `features`, "feature" (Bd, A/6, F): the pyramid's cells in the order of their anchors, through the adapters
            if there are any.
        """
        pyramid = self.pyramid(images)
        height, width = images.shape[-2:]
        outputs = {}
        if self.det_head is not None:
            heads: list[nn.Module] = [self.det_head]
            if features and self.adapters is not None:
                heads.append(self.adapters)
            if _is_empty(det_rows):
                zero = _connected_zero(heads, pyramid)
                count = len(self.anchors(height, width))
                outputs["cls"] = zero.expand(0, count, len(self.det_classes))
                outputs["box"] = zero.expand(0, count, 4)
                if features:
                    outputs["feature"] = zero.expand(0, count // PER_CELL, self.config.adapter or pyramid[0].shape[1])
            else:
                levels = [_rows(level, det_rows) for level in pyramid]
                cls, box = self.det_head(levels)
                outputs["cls"], outputs["box"] = at_least_float32(cls), at_least_float32(box)
                if features and self.adapters is not None:
                    levels = [adapter(level) for adapter, level in zip(self.adapters, levels, strict=True)]
                if features:
                    outputs["feature"] = at_least_float32(cells(levels))
        if self.seg_head is not None:
            if _is_empty(seg_rows):
                zero = _connected_zero([self.seg_head], pyramid)
                stride = self.seg_head.stride
                outputs["seg"] = zero.expand(0, len(self.seg_classes), height // stride, width // stride)
            else:
                logits = self.seg_head([_rows(level, seg_rows) for level in pyramid])
                outputs["seg"] = at_least_float32(logits)
        return outputs

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The features that the heads share: images, as `forward` takes them, to maps (B, width, H/8/2**i, …)."""
        pixels = images.to(memory_format=torch.channels_last)
        if pixels.dtype == torch.uint8:
            pixels = (pixels.float() - self.mean) / self.std
        return self.neck(self.backbone(pixels))

    def anchors(self, height: int, width: int) -> Tensor:
        """(A, 4) anchors cx cy w h, normalised, of an input of this size in pixels, on the model's device."""
        return anchors(height, width, self.config.anchor_base, self.mean.device, self.levels)


def cells(pyramid: Sequence[Tensor]) -> Tensor:
    """Maps (B, F, h, w), fine to coarse, as one vector a cell: (B, sum of h * w, F)."""
    return torch.cat([level.flatten(2) for level in pyramid], dim=2).transpose(1, 2)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _is_empty(rows: Tensor | None) -> bool:
    return rows is not None and len(rows) == 0


def _rows(feature: Tensor, rows: Tensor | None) -> Tensor:
    return feature if rows is None else feature[rows].contiguous(memory_format=torch.channels_last)


def _connected_zero(heads: Sequence[nn.Module], features: Sequence[Tensor]) -> Tensor:
    """A float32 zero with zero gradients for the heads' parameters and the features.

    Sums of empty slices, not zero times the values: those would be NaN where a value is not finite.
    """
    tensors = [*(parameter for head in heads for parameter in head.parameters()), *features]
    return torch.stack([at_least_float32(tensor[:0]).sum() for tensor in tensors]).sum()
