"""Training augmentation and evaluation resize, of pixels, boxes and mask alike (torchvision.transforms.v2)."""

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from multas_ray.config import AugmentConfig

VERSION = 1
"""Of what `Augment` makes of a sample and a seed. It grows with every change of pixels: stored soft targets of other
pixels are worthless."""

Sample = dict[str, Any]
"""image: tv Image uint8 (3,H,W); optional boxes: tv BoundingBoxes (N,4) XYXY pixels with labels (N,) and difficult
(N,); optional mask: tv Mask uint8 (H,W)."""


class Augment:
    """Random zoom-out, crop, flip, resize and photometric distortion: a pure function of the sample and a seed.

    Geometry comes first and colour last, on the small image, where it is cheapest.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        # 255 in a mask is "ignore": padding teaches segmentation nothing.
        fill = {tv_tensors.Image: (124, 116, 104), tv_tensors.Mask: 255}
        self.zoom_out = v2.RandomZoomOut(fill=fill, side_range=(1.0, 2.0), p=config.zoom_out)
        self.iou_crop = v2.RandomIoUCrop(min_scale=0.4)
        self.flip = v2.RandomHorizontalFlip(config.flip)
        self.photometric = v2.RandomPhotometricDistort(
            brightness=(0.75, 1.25), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.04, 0.04)
        )
        self.sanitize = v2.SanitizeBoundingBoxes(
            min_size=1.0, labels_getter=lambda sample: [sample["labels"], sample["difficult"]]
        )

    def __call__(self, sample: Sample, size: int, seed: int) -> Sample:
        """The augmented sample, `size` x `size` pixels. The same sample, size and seed give the same pixels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sample = self.zoom_out(sample)
            if torch.rand(()) < self.config.crop:
                sample = self.iou_crop(sample) if len(sample.get("boxes", ())) else free_crop(sample, size)
            sample = resize(self.flip(sample), size)
            if self.config.photometric:
                sample = self.photometric(sample)
        if "boxes" not in sample:
            return sample
        # Apart from the mask, whose rows torchvision would take for one entry a box.
        boxes = {key: sample[key] for key in ("boxes", "labels", "difficult")}
        return sample | self.sanitize(boxes)


def free_crop(sample: Sample, size: int) -> Sample:
    """A resized crop where no box guides it, of about the IoU crop's range of scales and aspect ratios."""
    return v2.RandomResizedCrop((size, size), scale=(0.3, 1.0), ratio=(0.5, 2.0), antialias=True)(sample)


def resize(sample: Sample, size: int) -> Sample:
    """The sample stretched to `size` x `size` pixels: bilinear with antialiasing; nearest for the mask."""
    return v2.Resize((size, size), InterpolationMode.BILINEAR, antialias=True)(sample)
