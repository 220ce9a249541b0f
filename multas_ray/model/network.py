"""The multi-task network: one backbone and neck, a head for each task."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multas_ray.config import ModelConfig, Task
from multas_ray.errors import UserError
from multas_ray.model.backbones import BackboneSettings, build_backbone
from multas_ray.model.neck import Neck
from multas_ray.model.paper import ContextNeck, paper_norm
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks import PARTS
from multas_ray.tasks.detection.anchors import anchors


class MultiTaskNet(nn.Module):
    """Network that detects objects and segments images from shared features."""

    def __init__(self, config: ModelConfig, classes: Mapping[Task, Sequence[str]]) -> None:
        """Build the network.

        Args:
            config: the network's section of the configuration.
            classes: names of each task's classes, in the order of labels and mask values; classes of a task without a
                head are ignored.

        Raises:
            UserError: a task has no classes, or pretrained weights are not available.
        """
        super().__init__()
        self.config = config
        self.tasks = tuple(config.tasks)
        self.classes: dict[Task, tuple[str, ...]] = {task: tuple(classes[task]) for task in self.tasks}
        for task, names in self.classes.items():
            if not names:
                raise UserError(f"model.tasks: has {task}, but the data set has no {task}_classes")

        paper = config.preset == "paper"
        settings = BackboneSettings(config.pretrained, config.norm, stem_pool=not paper, weights=config.weights)
        self.backbone = build_backbone(config.backbone, settings)
        self.levels = config.pyramid_levels
        if paper:
            self.neck: nn.Module = ContextNeck(
                self.backbone.channels,
                config.width,
                self.levels,
                bottom_up=config.neck == "pafpn",
                norm=paper_norm(config.norm),
            )
        else:
            self.neck = Neck(self.backbone.channels, config.width, self.levels)
        for task in self.tasks:
            self.add_module(f"{task}_head", PARTS[task].network.head(config, len(self.classes[task])))
        self.adapters = None
        if config.adapter is not None:
            self.adapters = nn.ModuleList(nn.Conv2d(config.width, config.adapter, 1) for _ in range(self.levels))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(self.backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(self.backbone.std).view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    @property
    def det_classes(self) -> tuple[str, ...]:
        """Names of the detection classes; empty without the task."""
        return self.classes.get("det", ())

    @property
    def seg_classes(self) -> tuple[str, ...]:
        """Names of the segmentation classes; empty without the task."""
        return self.classes.get("seg", ())

    def head(self, task: Task) -> nn.Module:
        """Return the head of one of the network's tasks."""
        return self.get_submodule(f"{task}_head")

    def forward(
        self, images: Tensor, rows: Mapping[Task, Tensor | None] | None = None, *, features: bool = False
    ) -> dict[Task, Any]:
        """Run the shared features on every image and each head on its rows only.

        Args:
            images: (B, 3, H, W) uint8 RGB, or float that is normalised already; B >= 1, H and W multiples of 32.
            rows: rows (n,) long of the batch for each task, in the order in which its head is run on them; None for all
                rows. A missing task has no rows. The outputs for no rows are empty, but still connected to every
                parameter (zero gradients), so that all workers of a distributed step reduce the same gradients.
            features: return the features of detection's rows as well.

        Returns:
            The output of each task, as `TaskNetwork.run` returns it, in float32 (float64 for a float64 network).
        """
        pyramid = self.pyramid(images)
        outputs = {}
        for task in self.tasks:
            chosen = None if rows is None else rows.get(task, images.new_zeros(0, dtype=torch.long))
            network, head = PARTS[task].network, self.head(task)
            if chosen is not None and not len(chosen):
                heads = [head, *([self.adapters] if features and task == "det" and self.adapters else [])]
                zero = _connected_zero(heads, pyramid)
                outputs[task] = network.nothing(head, zero, self.config, (images.shape[-2], images.shape[-1]), features)
            else:
                levels = [_rows(level, chosen) for level in pyramid]
                outputs[task] = network.run(head, levels, self.adapters, features)
        return outputs

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Compute the shared features.

        Args:
            images: (B, 3, H, W), as `forward` takes them.

        Returns:
            Maps (B, width, H / 8 / 2**i, W / 8 / 2**i) of levels i = 0, 1, ….
        """
        pixels = images.to(memory_format=torch.channels_last)
        if pixels.dtype == torch.uint8:
            pixels = (pixels.float() - self.mean) / self.std
        maps: list[Tensor] = self.neck(self.backbone(pixels))
        return maps

    def anchors(self, height: int, width: int) -> Tensor:
        """Return anchors (A, 4) cx cy w h, normalised, of an input of this size in pixels, on the model's device."""
        return anchors(height, width, self.config.anchor_base, self.mean.device, self.levels)


def count_parameters(module: nn.Module) -> int:
    """Count the trainable scalars of a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_gmacs(network: MultiTaskNet, size: int) -> float:
    """Count the multiplications of an image's forward pass in evaluation mode, in 10^9.

    Args:
        network: the network, which is in evaluation mode afterwards.
        size: side of the image in pixels.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    return counter.get_total_flops() / 2e9


def _rows(feature: Tensor, rows: Tensor | None) -> Tensor:
    return feature if rows is None else feature[rows].contiguous(memory_format=torch.channels_last)


def _connected_zero(heads: Sequence[nn.Module], features: Sequence[Tensor]) -> Tensor:
    """Return a float32 zero with zero gradients for the heads' parameters and the features.

    Sums of empty slices, not zero times the values: those would be NaN where a value is not finite.
    """
    tensors = [*(parameter for head in heads for parameter in head.parameters()), *features]
    return torch.stack([at_least_float32(tensor[:0]).sum() for tensor in tensors]).sum()
