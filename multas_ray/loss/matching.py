"""Which ground-truth box each anchor answers for."""

from typing import NamedTuple

import torch
from torch import Tensor

from multas_ray.model.anchors import corners


class Match(NamedTuple):
    """The box of each anchor."""

    index: Tensor  # type: ignore[assignment]  # tuple.index is not used
    """(B, A) long, 0..M-1; without meaning where `overlap` is 0."""
    overlap: Tensor
    """(B, A) float32 in 0..1: IoU with that box; 1 for the best anchor of a box; 0 in images without boxes."""


@torch.no_grad()
def iou_match(boxes: Tensor, valid: Tensor, anchors: Tensor) -> Match:
    """Give each anchor the box of highest IoU, and each box its best anchor (SSD, Liu et al., ECCV 2016).

    Where boxes share their best anchor, the later box gets it. Boxes without area match nothing.

    Args:
        boxes: (B, M, 4) x1 y1 x2 y2, normalised, M >= 1.
        valid: (B, M) bool, false for padding.
        anchors: (A, 4) cx cy w h, normalised.
    """
    overlaps = _iou(boxes.float(), corners(anchors))
    valid = valid & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    overlap, index = overlaps.masked_fill(~valid[..., None], 0).max(dim=1)

    best = overlaps.argmax(dim=2)
    order = torch.arange(boxes.shape[1], device=boxes.device).expand_as(best).masked_fill(~valid, -1)
    forced = torch.full_like(index, -1).scatter_reduce(1, best, order, "amax")
    return Match(torch.where(forced >= 0, forced, index), torch.where(forced >= 0, 1.0, overlap))


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(B, M, 4) and (A, 4) x1 y1 x2 y2 to IoU (B, M, A). `others` have an area."""
    boxes = boxes[:, :, None]
    low = torch.maximum(boxes[..., :2], others[:, :2])
    high = torch.minimum(boxes[..., 2:], others[:, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    union = _area(boxes) + _area(others) - intersection
    return intersection / union


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
