"""Augmentation for training and resize for evaluation, of pixels, boxes and mask alike (torchvision.transforms.v2)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from multas_ray.config import AugmentConfig
from multas_ray.data.geometry import traced

VERSION = 2
"""Version of the pixels that `Augment` makes from a sample and a seed. Every change of the pixels raises it: stored
soft targets for other pixels are worthless."""

LUMA = torch.tensor([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness."""
YIQ = torch.stack([LUMA, torch.tensor([0.5959, -0.2746, -0.3213]), torch.tensor([0.2115, -0.5227, 0.3112])])
"""Matrix from RGB to brightness and the two axes of colour of NTSC television."""
RGB = YIQ.inverse()
"""Matrix from YIQ to RGB."""

Sample = dict[str, Any]
"""image: tv Image uint8 (3,H,W); optional boxes: tv BoundingBoxes (N,4) XYXY pixels with labels (N,) and difficult
(N,); optional mask: tv Mask uint8 (H,W); after augmentation its `Geometry`."""


def to_sample(image: Tensor, annotation: Mapping[str, np.ndarray]) -> Sample:
    """Wrap an image (3, H, W) uint8 and its annotation: boxes with labels and difficult, a mask, both or neither."""
    sample: Sample = {"image": tv_tensors.Image(image)}
    for name, values in annotation.items():
        sample[name] = torch.from_numpy(values)
    if "boxes" in sample:
        sample["boxes"] = tv_tensors.BoundingBoxes(
            sample["boxes"], format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=image.shape[-2:]
        )
    if "mask" in sample:
        sample["mask"] = tv_tensors.Mask(sample["mask"])
    return sample


class Traced:
    """Part of a transform of torchvision that remembers the parameters of its last use."""

    used: dict[str, Any] | None = None
    """None where the last sample was left as it was."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Transform one value of a sample."""
        self.used = params
        return super().transform(inpt, params)  # type: ignore[misc]


class ZoomOut(Traced, v2.RandomZoomOut):
    """Zoom-out whose padding is known."""


class IoUCrop(Traced, v2.RandomIoUCrop):
    """Crop around boxes that is known."""


class FreeCrop(Traced, v2.RandomResizedCrop):
    """Crop that is known."""


class Flip(Traced, v2.RandomHorizontalFlip):
    """Flip of which is known whether it took place."""


class Augment:
    """Random zoom-out, crop, flip, resize and photometric distortion: a pure function of the sample and a seed.

    Geometry comes first and colour last, on the small image, where it is cheapest.
    """

    def __init__(self, config: AugmentConfig) -> None:
        """Build the transforms with the configured probabilities."""
        self.config = config
        # 255 in a mask is "ignore": padding teaches segmentation nothing.
        fill = {tv_tensors.Image: (124, 116, 104), tv_tensors.Mask: 255}
        self.zoom_out = ZoomOut(fill=fill, side_range=(1.0, 2.0), p=config.zoom_out)
        self.iou_crop = IoUCrop(min_scale=0.4)
        self.flip = Flip(config.flip)
        self.sanitize = v2.SanitizeBoundingBoxes(
            min_size=1.0, labels_getter=lambda sample: [sample["labels"], sample["difficult"]]
        )

    def __call__(self, sample: Sample, size: int, seed: int) -> Sample:
        """Augment a sample to `size` x `size` pixels. The same sample, size and seed give the same pixels.

        Returns:
            The sample, and in `geometry` where it lies in the original.
        """
        sides = (sample["image"].shape[-2], sample["image"].shape[-1])
        self.zoom_out.used = self.iou_crop.used = self.flip.used = None
        crop: IoUCrop | FreeCrop = self.iou_crop
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: for the GPU's sake it takes a stack trace each time.
            torch.default_generator.manual_seed(seed)
            sample = self.zoom_out(sample)
            if torch.rand(()) < self.config.crop:
                if not len(sample.get("boxes", ())):
                    # In about the same range of scales and aspect ratios.
                    crop = FreeCrop((size, size), scale=(0.3, 1.0), ratio=(0.5, 2.0), antialias=True)
                sample = crop(sample)
            sample = resize(self.flip(sample), size)
            if self.config.photometric:
                sample = sample | {"image": distort_colours(sample["image"])}
        padding = self.zoom_out.used["padding"] if self.zoom_out.used else None
        sample["geometry"] = traced(sides, padding, crop.used, self.flip.used is not None)
        if "boxes" not in sample:
            return sample
        # Apart from the mask, whose rows torchvision would take for one entry a box.
        boxes = {key: sample[key] for key in ("boxes", "labels", "difficult")}
        large_enough: Sample = self.sanitize(boxes)
        return sample | large_enough


def distort_colours(image: tv_tensors.Image) -> tv_tensors.Image:
    """Change brightness, saturation, hue and contrast at random, each with probability 1/2."""
    chosen = torch.rand(4) < 0.5
    changes = torch.empty(4).uniform_(-1, 1) * torch.tensor([0.25, 0.4, 0.04, 0.4]) * chosen
    return change_colours(image, *changes.tolist())


def change_colours(
    image: tv_tensors.Image, brightness: float, saturation: float, hue: float, contrast: float
) -> tv_tensors.Image:
    """Change an image's colours by these fractions, one after another.

    All four are linear in a pixel's colour (hue as a rotation about the grey axis of YIQ), so they are one matrix and
    one pass over the pixels: a fifth of the time of torchvision's, which goes through HSV.

    Args:
        image: uint8 (3, H, W).
        brightness: -1 (black) to 1 (twice as bright).
        saturation: -1 (grey) to 1 (twice as saturated).
        hue: fraction of a full turn.
        contrast: -1 (uniform) to 1 (twice the contrast).
    """
    turn = torch.eye(3)
    cosine, sine = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn[1:, 1:] = torch.tensor([[cosine, sine], [-sine, cosine]])
    matrix = (1 + brightness) * ((1 + saturation) * torch.eye(3) - saturation * LUMA.expand(3, 3))
    matrix = RGB @ turn @ YIQ @ matrix
    pixels = image.flatten(1).float()
    # Contrast draws every pixel to the image's mean brightness, or away from it.
    shift = -contrast * (LUMA @ matrix @ pixels.mean(dim=1))
    changed = torch.addmm(shift.expand(3, 1), (1 + contrast) * matrix, pixels).round_().clamp_(0, 255)
    return tv_tensors.wrap(changed.to(torch.uint8).view_as(image), like=image)


def resize(sample: Sample, size: int) -> Sample:
    """Stretch a sample to `size` x `size` pixels: bilinear with antialiasing; nearest for the mask."""
    resized: Sample = v2.Resize((size, size), InterpolationMode.BILINEAR, antialias=True)(sample)
    return resized
