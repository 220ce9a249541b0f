"""Objects found in original images: stored in a few kilobytes each, and moved with the image when it is augmented."""

from collections.abc import Sequence

import numpy as np
import torch

from multas_ray.data.geometry import Geometry
from multas_ray.tasks.detection.found import MOST, Found
from multas_ray.tasks.detection.loss import POSITIVE
from multas_ray.tasks.detection.matching import overlaps
from multas_ray.tasks.packed import compress, decompress, read_head, take_array

FINE = 2**16 - 1
"""Number of steps of a stored coordinate along a side: a hundredth of a pixel of 640."""
LEAST = 1e-3
"""Probability below which a class of an object is stored as absent."""


def pack(found: Found) -> list[bytes]:
    """Pack objects found in n images, without the padding, into n byte strings."""
    packed = []
    for boxes, p in zip(found.boxes.cpu(), found.probabilities.cpu(), strict=True):
        some = p.amax(dim=1) > 0
        corners = (boxes[some].clamp(0, 1) * FINE).round().numpy().astype(np.uint16)
        p = torch.where(p[some] < LEAST, 0, p[some])
        packed.append(compress((len(corners), p.shape[1], 0), (corners, p.half().numpy())))
    return packed


def follow(packed: bytes, geometry: Geometry, size: int, background: bool) -> tuple[np.ndarray, np.ndarray]:
    """Move the objects of an image with its augmentation. One whose centre is cut off is gone.

    Args:
        packed: what `pack` made of the image.
        geometry: where the augmented image lies in the original.
        size: side of the augmented image in pixels; objects are left out that have less than a pixel of a side.
        background: without effect.

    Returns:
        Boxes (k, 4) x1 y1 x2 y2 as fractions of the sides, probabilities (k, C): float32.
    """
    corners, p = _read(packed)
    boxes = geometry.boxes(corners.astype(np.float32) / FINE)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > 0) & (centres < 1)).all(axis=1)
    boxes = np.clip(boxes, 0, 1)
    inside &= (boxes[:, 2:] - boxes[:, :2] >= 1 / size).all(axis=1)
    return boxes[inside], p[inside].astype(np.float32)


def stack(images: Sequence[tuple[np.ndarray, np.ndarray]]) -> Found:
    """Stack the objects of n >= 1 images into arrays, padded to the most of one."""
    most = max(len(boxes) for boxes, _ in images)
    boxes, p = (
        np.stack([np.pad(each, ((0, most - len(each)), (0, 0))) for each in kind]) for kind in zip(*images, strict=True)
    )
    return Found(boxes, p)  # type: ignore[arg-type]  # arrays, on their way to tensors


def check(packed: bytes, classes: int) -> None:
    """Check what was read from a file.

    Raises:
        ValueError: the bytes are no packed objects, or of another number of classes.
    """
    (_, count, _), _ = read_head(packed)
    if count != classes:
        raise ValueError(f"of {count} classes, not {classes}")
    _read(packed)


def _read(packed: bytes) -> tuple[np.ndarray, np.ndarray]:
    (objects, classes, _), size = read_head(packed)
    if objects > MOST or size != objects * (8 + 2 * classes):
        raise ValueError("of another size than it says")
    buffer = decompress(packed, size)
    corners, buffer = take_array(buffer, np.uint16, 4 * objects)
    p, _ = take_array(buffer, np.float16, objects * classes)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("no probabilities")
    return corners.reshape(-1, 4), p.reshape(-1, classes)


def unite(teachers: Sequence[Found], known: np.ndarray) -> Found:
    """Unite what several teachers found in the same images: each class of an object is the mean of those that know it.

    Args:
        teachers: objects of each teacher, in the classes of their student.
        known: (m, C) bool: the classes that each of them knows.
    """
    marks = torch.tensor(known, device=teachers[0].boxes.device)
    boxes = torch.cat([each.boxes for each in teachers], dim=1)
    sums = boxes.new_zeros(*boxes.shape[:2], known.shape[1])
    for found, mark in zip(teachers, marks, strict=True):
        sums += mark * _seen_at(boxes, found)
    return Found(boxes, sums / marks.sum(dim=0).clamp(min=1))


def _seen_at(boxes: torch.Tensor, found: Found) -> torch.Tensor:
    """Return the probabilities (n, K, C) that a teacher gives to boxes (n, K, 4): those of what it found there."""
    if not found.boxes.shape[1]:
        return boxes.new_zeros(*boxes.shape[:2], found.probabilities.shape[2])
    real = found.probabilities.amax(dim=2) > 0
    iou = torch.stack(
        [overlaps(own[None], valid[None], each)[0] for own, valid, each in zip(found.boxes, real, boxes, strict=True)]
    )
    best, place = iou.max(dim=1)
    p = found.probabilities.gather(1, place[..., None].expand(-1, -1, found.probabilities.shape[2]))
    return p * (best >= POSITIVE)[..., None]
