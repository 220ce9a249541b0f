"""The multi-task network: one backbone and neck, a head for each task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multas_ray.config import ModelConfig
from multas_ray.errors import UserError
from multas_ray.model.anchors import anchors
from multas_ray.model.backbones import build_backbone
from multas_ray.model.heads import DetectionHead, SegmentationHead
from multas_ray.model.neck import Neck


class MultiTaskNet(nn.Module):
    """Detects objects and segments images from shared features.

    Args:
        config: the network's section of the configuration.
        det_classes: names of the detection classes; ignored without the task `det`.
        seg_classes: names of the segmentation classes, background first; ignored without the task `seg`.

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

        self.backbone = build_backbone(config.backbone, config.pretrained, config.norm)
        self.neck = Neck(self.backbone.channels, config.width)
        self.det_head = DetectionHead(config.width, len(self.det_classes)) if "det" in self.tasks else None
        self.seg_head = SegmentationHead(config.width, len(self.seg_classes)) if "seg" in self.tasks else None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(self.backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(self.backbone.std).view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, images: Tensor, det_rows: Tensor | None = None, seg_rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run the shared features on every image and each head on its rows only.

        Args:
            images: (B, 3, H, W) uint8 RGB, B >= 1; H and W multiples of 32.
            det_rows, seg_rows: (Bd,), (Bs,) long, rows of the batch that the head is run on, in this order; None: all.
                With no row at all the outputs are empty, but still connected to every parameter (zero gradients), so
                that all workers of a distributed step reduce the same gradients.

        Returns:
            float32, of the tasks present: "cls" (Bd, A, C) logits and "box" (Bd, A, 4) codes, in the order of
            `anchors`; "seg" (Bs, C, H/4, W/4) logits.
        """
        pixels = images.to(memory_format=torch.channels_last).float()
        maps = self.backbone((pixels - self.mean) / self.std)
        pyramid = self.neck(maps)
        outputs = {}
        if self.det_head is not None:
            if _is_empty(det_rows):
                zero = _connected_zero(self.det_head, pyramid)
                count = len(self.anchors(*images.shape[-2:]))
                outputs["cls"] = zero.expand(0, count, len(self.det_classes))
                outputs["box"] = zero.expand(0, count, 4)
            else:
                cls, box = self.det_head([_rows(level, det_rows) for level in pyramid])
                outputs["cls"], outputs["box"] = cls.float(), box.float()
        if self.seg_head is not None:
            if _is_empty(seg_rows):
                zero = _connected_zero(self.seg_head, pyramid)
                outputs["seg"] = zero.expand(0, len(self.seg_classes), images.shape[2] // 4, images.shape[3] // 4)
            else:
                logits = self.seg_head([_rows(level, seg_rows) for level in pyramid])
                outputs["seg"] = logits.float()
        return outputs

    def anchors(self, height: int, width: int) -> Tensor:
        """(A, 4) anchors cx cy w h, normalised, of an input of this size in pixels, on the model's device."""
        return anchors(height, width, self.config.anchor_base, self.mean.device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to float32 (none), bfloat16 or float16."""
    return torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32")


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _is_empty(rows: Tensor | None) -> bool:
    return rows is not None and len(rows) == 0


def _rows(feature: Tensor, rows: Tensor | None) -> Tensor:
    return feature if rows is None else feature[rows].contiguous(memory_format=torch.channels_last)


def _connected_zero(head: nn.Module, features: Sequence[Tensor]) -> Tensor:
    """A float32 zero of shape (1, 1, …) with zero gradients for the head's parameters and the features.

    Sums of empty slices, not zero times the values: those would be NaN where a value is not finite.
    """
    tensors = [*head.parameters(), *features]
    return torch.stack([tensor[:0].float().sum() for tensor in tensors]).sum()
