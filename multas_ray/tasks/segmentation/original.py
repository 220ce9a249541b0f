"""Class distributions of original images: stored in some kilobytes each, and moved with the image when augmented."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.data.geometry import Geometry
from multas_ray.tasks.packed import TINY, read_head
from multas_ray.tasks.segmentation import packed as codec

STRIDE = 4
"""Stride of an answer, in pixels of the augmented image."""
MOST = 128
"""Largest side of a stored distribution in its own pixels."""


def pack(probabilities: Tensor) -> list[bytes]:
    """Pack distributions (n, C, h, w) of n images, of any resolution, into n byte strings of some kilobytes."""
    side = max(codec.BLOCK, min(MOST, *probabilities.shape[2:]) // codec.BLOCK * codec.BLOCK)
    if probabilities.shape[2:] != (side, side):
        probabilities = F.interpolate(probabilities, (side, side), mode="bilinear", antialias=True)
    return codec.pack(probabilities.clamp(min=TINY).log())


def follow(packed: bytes, geometry: Geometry, size: int, background: bool) -> np.ndarray:
    """Move a distribution with its image's augmentation.

    Args:
        packed: what `pack` made of the image.
        geometry: where the augmented image lies in the original.
        size: side of the augmented image in pixels.
        background: whether the first class is the background, which what lies outside the original is of; else every
            class alike.

    Returns:
        (C, size / 4, size / 4) float16 logarithms of probabilities.
    """
    p = codec.unpack([packed], torch.device("cpu"))[0].exp().numpy()
    moved, share = geometry.resampled(p, size // STRIDE)
    if background:
        moved[0] += 1 - share
    else:
        moved += (1 - share) / len(moved)
    logits: np.ndarray = np.log(np.maximum(moved, TINY)).astype(np.float16)
    return logits


def stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stack the distributions of n >= 1 images."""
    return np.stack(images)


def check(packed: bytes, classes: int) -> None:
    """Check what was read from a file.

    Raises:
        ValueError: the bytes are no packed distribution, or of another number of classes.
    """
    (count, height, width), _ = read_head(packed)
    if count != classes or not 0 < height == width <= MOST or height % codec.BLOCK:
        raise ValueError(
            f"of the shape {(count, height, width)}, not of {classes} classes and a side of {MOST} at most"
        )
    codec.check(packed, (count, height, width))


def unite(teachers: Sequence[Tensor], known: np.ndarray) -> Tensor:
    """Unite what several teachers say of the same pixels: each class is the mean of those that know it.

    Args:
        teachers: probabilities (n, C, h, w) of each teacher, in the classes of their student; resolutions may differ.
        known: (m, C) bool: the classes that each of them knows.
    """
    sides = teachers[0].shape[2:]
    same = [
        each if each.shape[2:] == sides else F.interpolate(each, sides, mode="bilinear", antialias=True)
        for each in teachers
    ]
    marks = torch.tensor(known, device=teachers[0].device)
    p = torch.stack(same) * marks[:, None, :, None, None]
    mean = p.sum(dim=0) / marks.sum(dim=0).clamp(min=1)[:, None, None]
    if marks[:, 0].all():
        mean[:, 0] = (1 - mean[:, 1:].sum(dim=1)).clamp(min=0)
    return mean / mean.sum(dim=1, keepdim=True)
