"""Augmentation for training: it is decided what is seen of an image and its annotation, and only that is decoded."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from multas_ray.config import TASKS, AugmentConfig
from multas_ray.data.geometry import View
from multas_ray.data.image import EncodedImage
from multas_ray.tasks import PARTS

VERSION = 3
"""Version of the pixels that `Augment` makes from a sample and a seed. Every change of the pixels raises it: stored
soft targets for other pixels are worthless."""

LUMA = torch.tensor([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness."""
YIQ = torch.stack([LUMA, torch.tensor([0.5959, -0.2746, -0.3213]), torch.tensor([0.2115, -0.5227, 0.3112])])
"""Matrix from RGB to brightness and the two axes of colour of NTSC television."""
RGB = YIQ.inverse()
"""Matrix from YIQ to RGB."""

Sample = Mapping[str, Any]
"""image: `EncodedImage`, or (3, h, w) uint8 once augmented; the annotation of each task that the image is annotated
for, as `decode` of its rows.py returns it; after augmentation `geometry`."""
MOST_ZOOM = 2.0
"""Largest side of a canvas that an image is placed on, in sides of the image."""
FREE_CROP = v2.RandomResizedCrop(1, scale=(0.3, 1.0), ratio=(0.5, 2.0))
"""Crop of an image without boxes, in about the range of scales and aspect ratios of the others."""
OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)
"""Least IoU that a crop has with some box, drawn before the crop; None: no crop."""
LEAST_CROP, MOST_STRETCHED, TRIES = 0.4, 2.0, 40
"""Least side of a crop, in sides of the image; largest ratio of its sides; crops that are tried for an overlap."""


class Augment:
    """Random zoom-out, crop, flip, resize and photometric distortion: a pure function of the sample and a seed.

    Geometry comes first and colour last, on the small image, where it is cheapest.
    """

    def __init__(self, config: AugmentConfig) -> None:
        """Take the probabilities."""
        self.config = config

    def __call__(self, sample: Sample, size: int, seed: int) -> Sample:
        """Augment a sample to `size` x `size` pixels. The same sample, size and seed give the same pixels.

        Returns:
            The pixels and annotation that are seen, and in `geometry` where they lie in the original.

        Raises:
            Reject: the image cannot be decoded.
        """
        image: EncodedImage = sample["image"]
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: for the GPU's sake it takes a stack trace each time.
            torch.default_generator.manual_seed(seed)
            pixels, view = image.seen(self._draw(image.height, image.width, sample.get("boxes")), size)
            if self.config.photometric:
                pixels = distort_colours(pixels)
        seen = {"image": pixels, "geometry": view.geometry(image.height, image.width)}
        for task in TASKS:
            seen |= PARTS[task].rows.seen(sample, view, size)
        return seen

    def _draw(self, height: int, width: int, boxes: np.ndarray | None) -> View:
        """Draw what is seen of an image of this size in pixels, whose boxes are (n, 4) x1 y1 x2 y2; None: unknown."""
        view = View(0, 0, width, height)
        if torch.rand(()) < self.config.zoom_out:
            side, left, top = torch.rand(3).tolist()
            side = 1 + (MOST_ZOOM - 1) * side
            wide, high = int(side * width), int(side * height)
            view = View(-int(left * (wide - width)), -int(top * (high - height)), wide, high)
        if torch.rand(()) < self.config.crop:
            view = free_crop(view) if boxes is None or not len(boxes) else box_crop(view, boxes)
        return view._replace(flipped=bool(torch.rand(()) < self.config.flip))


def free_crop(view: View) -> View:
    """Draw a crop of a view."""
    # torchvision looks at the size alone of the image for which it draws.
    canvas = tv_tensors.Image(torch.empty((3, view.height, view.width), device="meta"))
    crop = FREE_CROP.make_params([canvas])
    return View(view.left + crop["left"], view.top + crop["top"], crop["width"], crop["height"])


def box_crop(view: View, boxes: np.ndarray) -> View:
    """Draw a crop of a view that shows the centre of some box, and enough of it (SSD, Liu et al., ECCV 2016).

    Args:
        view: rectangle in the pixels of an image.
        boxes: (n, 4) x1 y1 x2 y2 in the same pixels; n >= 1.
    """
    sides, corner = np.array([view.width, view.height]), np.array([view.left, view.top])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    while True:
        least = OVERLAPS[int(torch.randint(len(OVERLAPS), ()))]
        if least is None:
            return view
        # All tries at once: a loop in Python takes ten times as long.
        drawn = torch.rand(TRIES, 4, dtype=torch.float64).numpy()
        crops = np.floor(sides * (LEAST_CROP + (1 - LEAST_CROP) * drawn[:, :2])).clip(1, None)
        low = corner + np.floor(drawn[:, 2:] * (sides - crops))
        high = low + crops
        inside = ((low[:, None] < centres) & (centres < high[:, None])).all(axis=2)
        shared = np.minimum(high[:, None], boxes[:, 2:]) - np.maximum(low[:, None], boxes[:, :2])
        shared_area = shared.clip(0, None).prod(axis=2)
        overlaps = shared_area / (crops.prod(axis=1)[:, None] + areas - shared_area)
        stretched = crops.max(axis=1) / crops.min(axis=1)
        fits = (inside & (overlaps >= least)).any(axis=1) & (stretched <= MOST_STRETCHED)
        if fits.any():
            left, top, width, height = (int(value) for value in np.concatenate([low, crops], axis=1)[fits.argmax()])
            return View(left, top, width, height)


def distort_colours(image: Tensor) -> Tensor:
    """Change brightness, saturation, hue and contrast at random, each with probability 1/2."""
    chosen = torch.rand(4) < 0.5
    changes = torch.empty(4).uniform_(-1, 1) * torch.tensor([0.25, 0.4, 0.04, 0.4]) * chosen
    return change_colours(image, *changes.tolist())


def change_colours(image: Tensor, brightness: float, saturation: float, hue: float, contrast: float) -> Tensor:
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
    # A plane a colour: as pixels of three values the product takes twice as long.
    pixels = image.contiguous().flatten(1).float()
    # Contrast draws every pixel to the image's mean brightness, or away from it.
    shift = -contrast * (LUMA @ matrix @ pixels.mean(dim=1))
    # The conversion cuts off, so half a level is added. By NumPy, which converts seven times as fast as PyTorch.
    changed = torch.addmm((shift + 0.5).expand(3, 1), (1 + contrast) * matrix, pixels).clamp_(0, 255)
    return torch.from_numpy(changed.numpy().astype(np.uint8)).view_as(image)
