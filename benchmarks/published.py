"""Detection loss as the published code computes it, for comparison only.

Anchors are listed by nested loops in every step; each image is matched and scored by itself, with a loop over its
objects. The formulas are those of `tasks.detection.loss` with IoU matching and focal loss, so that both ways give
the same numbers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from multas_ray.tasks.detection.anchors import ASPECTS, FINEST_STRIDE, LEVELS, SCALES, corners, encode
from multas_ray.tasks.detection.loss import NEGATIVE, POSITIVE, balanced_l1, focal_bce


def listed_anchors(size: int, base: float = 24.0) -> Tensor:
    """List the anchors of a square input, as `multas_ray.tasks.detection.anchors.anchors` does.

    Args:
        size: side of the input in pixels.
        base: side of the smallest anchor in pixels.

    Returns:
        (A, 4) cx cy w h in [0, 1].
    """
    values: list[float] = []
    for level in range(LEVELS):
        stride = FINEST_STRIDE * 2**level
        cells = math.ceil(size / stride)
        side = base * 2**level / size
        for row in range(cells):
            for column in range(cells):
                cx, cy = (column + 0.5) * stride / size, (row + 0.5) * stride / size
                for scale in SCALES:
                    for wide, high in ASPECTS:
                        values += [cx, cy, side * scale * wide, side * scale * high]
    return torch.tensor(values).view(-1, 4).clamp(0, 1)


def image_losses(
    cls: Tensor, box: Tensor, anchors: Tensor, boxes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Compute the sums of box and class loss of one image, and the number of its positives.

    Args:
        cls: (A, C) logits.
        box: (A, 4) codes.
        anchors: (A, 4) cx cy w h.
        boxes: (N, 4) x1 y1 x2 y2 of the objects, N >= 1.
        labels: (N,) classes of the objects.
    """
    with torch.no_grad():
        overlaps = box_iou(boxes, corners(anchors))
        best_anchor = overlaps.argmax(dim=1)
        overlap, index = overlaps.max(dim=0)
        for number in range(len(boxes)):
            overlap[best_anchor[number]] = 1
            index[best_anchor[number]] = number
        positive = overlap >= POSITIVE
        goal = encode(boxes[index], anchors)
        target = torch.zeros_like(cls)
        target[positive, labels[index[positive]]] = 1
        counted = torch.ones_like(cls)
        between = (overlap >= NEGATIVE) & ~positive
        counted[between, labels[index[between]]] = 0
    box_loss = balanced_l1(box[positive], goal[positive]).sum()
    cls_loss = (focal_bce(cls, target, alpha=0.25, gamma=1.0) * counted).sum()
    return box_loss, cls_loss, int(positive.sum())


def losses(
    cls: Tensor, box: Tensor, size: int, boxes: Sequence[Tensor], labels: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute box and class loss of a batch, image after image.

    Args:
        cls: (B, A, C) logits.
        box: (B, A, 4) codes.
        size: side of the images in pixels.
        boxes: (N, 4) x1 y1 x2 y2 of the objects of each image.
        labels: (N,) classes of the objects of each image.
    """
    anchors = listed_anchors(size)
    images = zip(cls, box, boxes, labels, strict=True)
    parts = [image_losses(logits, codes, anchors, *truth) for logits, codes, *truth in images]
    positives = max(1, sum(count for _, _, count in parts))
    box_loss = torch.stack([part[0] for part in parts]).sum() / (4 * positives)
    return box_loss, torch.stack([part[1] for part in parts]).sum() / positives
