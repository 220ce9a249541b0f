"""A detector and a segmentation network of torchvision's own classes, and what makes teachers of them.

Both stand on ImageNet's EfficientNet-Lite0. Neither has the anchors, the heads or the losses of this project.

    teachers:
      det: {source: "python:docs.results.foreign.networks:Detector"}
      seg: {source: "python:docs.results.foreign.networks:Segmenter"}
"""

from collections import OrderedDict
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from multas_ray.model.backbones import Backbone, BackboneSettings, build_backbone

CLASSES = ("cat", "cow", "dog", "horse", "sheep", "person")
SIZE = 256
"""Side in pixels of the images that both are trained on, and work best on."""
WIDTH = 96
FOLDER = Path("runs/foreign").absolute()


class Pyramid(nn.Module):
    """Feature pyramid of four levels, of strides 8 to 64."""

    out_channels = WIDTH

    def __init__(self, pretrained: bool) -> None:
        """Build the backbone and the levels above it."""
        super().__init__()
        self.backbone = efficientnet(pretrained)
        self.levels = FeaturePyramidNetwork(list(self.backbone.channels), WIDTH, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute maps (n, WIDTH, h, w) of normalised images, fine to coarse."""
        maps = self.backbone(images)
        return self.levels(OrderedDict((str(number), each) for number, each in enumerate(maps)))


class Stages(nn.Module):
    """The two maps that LR-ASPP needs."""

    def __init__(self, pretrained: bool) -> None:
        """Build the backbone."""
        super().__init__()
        self.backbone = efficientnet(pretrained)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps of strides 8 and 32 of normalised images."""
        low, _, high = self.backbone(images)
        return {"low": low, "high": high}


def efficientnet(pretrained: bool) -> Backbone:
    """Build the backbone of both."""
    return build_backbone("efficientnet_lite0", BackboneSettings(pretrained, "batch"))


def retinanet(pretrained: bool) -> RetinaNet:
    """Build a RetinaNet, whose inputs are lists of images in 0..1."""
    pyramid = Pyramid(pretrained)
    sides = tuple((side, round(side * 2 ** (1 / 3)), round(side * 2 ** (2 / 3))) for side in (24, 48, 96, 160))
    return RetinaNet(
        pyramid,
        len(CLASSES),
        fixed_size=(SIZE, SIZE),
        min_size=SIZE,
        max_size=SIZE,
        image_mean=list(pyramid.backbone.mean),
        image_std=list(pyramid.backbone.std),
        anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
        score_thresh=0.01,
        detections_per_img=100,
    )


def lraspp(pretrained: bool) -> LRASPP:
    """Build an LR-ASPP, whose inputs are normalised images."""
    stages = Stages(pretrained)
    low, _, high = stages.backbone.channels
    return LRASPP(stages, low, high, 1 + len(CLASSES), inter_channels=128)


class Detector:
    """The trained RetinaNet as a teacher."""

    classes = CLASSES
    size = SIZE

    def __init__(self, device: str) -> None:
        """Load its weights."""
        self.network = retinanet(pretrained=False)
        self.network.load_state_dict(safetensors.torch.load_file(FOLDER / "det.safetensors"))
        self.network.eval().to(device)

    def __call__(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Find boxes with the probabilities of their classes: torchvision tells of each box one class alone."""
        found = self.network(list(images.float() / 255))
        return [
            (one["boxes"], torch.eye(len(CLASSES), device=images.device)[one["labels"]] * one["scores"][:, None])
            for one in found
        ]


class Segmenter:
    """The trained LR-ASPP as a teacher."""

    classes = ("background", *CLASSES)
    size = SIZE

    def __init__(self, device: str) -> None:
        """Load its weights."""
        self.network = lraspp(pretrained=False)
        self.network.load_state_dict(safetensors.torch.load_file(FOLDER / "seg.safetensors"))
        self.network.eval().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the probabilities of the pixels."""
        return self.network(normalised(images, self.network))["out"].softmax(dim=1)


def normalised(images: Tensor, network: LRASPP) -> Tensor:
    """Scale images uint8 to what the backbone was trained on."""
    backbone = network.backbone.backbone
    mean, std = (torch.tensor(each, device=images.device)[:, None, None] for each in (backbone.mean, backbone.std))
    return (images.float() / 255 - mean) / std
