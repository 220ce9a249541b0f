"""Objects as any detector finds them: a list of boxes an image, each with the probabilities of all classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou, nms

from multas_ray.tasks.detection.distillation import SEEN
from multas_ray.tasks.packed import TINY

MOST = 100
"""Largest number of objects that are kept of an image."""
CANDIDATES = 1000
"""Number of the surest boxes of an image that enter non-maximum suppression."""
OVERLAP = 0.5
"""IoU above which the less sure of two boxes of a class is dropped. A detector without suppression of its own has many
boxes an object; one that has it, or that is trained to need none, loses next to nothing."""
SAME = 0.9
"""IoU above which two boxes are one object, whatever their classes: a detector that answers with one class a box tells
what it wavers between by several boxes."""


class Found(NamedTuple):
    """Objects found in n images."""

    boxes: Tensor
    """(n, K, 4) x1 y1 x2 y2, as fractions of the image's sides."""
    probabilities: Tensor
    """(n, K, C) in 0..1, each class by itself; all zero for padding."""


def stacked(images: Sequence[tuple[Tensor, Tensor]]) -> Found:
    """Stack the boxes (k, 4) and probabilities (k, C) of n >= 1 images, padded to the most boxes of one."""
    most = max(len(boxes) for boxes, _ in images)
    boxes, probabilities = (
        torch.stack([F.pad(each.float(), (0, 0, 0, most - len(each))) for each in kind])
        for kind in zip(*images, strict=True)
    )
    return Found(boxes, probabilities)


@torch.no_grad()
def translated(
    found: Found, columns: Sequence[int | None], count: int, temperature: float = 1.0, exclusive: bool = False
) -> Found:
    """Bring objects to the classes of a student, and keep the surest hundred of each image.

    Args:
        found: objects with the teacher's classes.
        columns: column of each of its classes; None for one that is left out.
        count: number of the student's classes.
        temperature: divisor of the logits, in the student's classes.
        exclusive: whether an object is of one of the teacher's classes at most, so that the probabilities of several in
            one column add up; else the most probable counts.

    Returns:
        At most `MOST` objects an image, none of which overlaps a surer one of its class much, or any other nearly
        wholly.
    """
    probabilities = found.probabilities.float()
    own = probabilities.new_zeros(*probabilities.shape[:2], count)
    for column in {column for column in columns if column is not None}:
        several = probabilities[..., [place for place, each in enumerate(columns) if each == column]]
        own[..., column] = several.sum(-1).clamp(max=1) if exclusive else several.amax(-1)
    if temperature != 1:
        # Padding stays at 0: -inf divided by anything.
        own = (own.logit() / temperature).sigmoid()
    return stacked([_surest(boxes, each) for boxes, each in zip(found.boxes.float().clamp(0, 1), own, strict=True)])


def _surest(boxes: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the surest boxes (k, 4) of an image, and their probabilities (k, C), the surest first.

    Boxes of one object become the surest of them, with the highest probability of each class.
    """
    sure, labels = probabilities.max(dim=1)
    order = sure.argsort(descending=True, stable=True)[:CANDIDATES]
    # A box beside the image has no area left.
    order = order[(sure[order] > SEEN) & (boxes[order, 2:] > boxes[order, :2]).all(dim=1)]
    kept = order[batched_nms(boxes[order], sure[order], labels[order], OVERLAP)]
    objects = kept[nms(boxes[kept], sure[kept], SAME)]
    if len(objects) < len(kept):
        object_of = box_iou(boxes[kept], boxes[objects]).argmax(dim=1)
        merged = torch.zeros_like(probabilities[objects])
        own = probabilities[kept]
        probabilities = merged.scatter_reduce_(0, object_of[:, None].expand_as(own), own, "amax")
    else:
        probabilities = probabilities[objects]
    return boxes[objects][:MOST], probabilities[:MOST].clamp(max=1 - TINY)
