"""Matching of anchors with ground-truth boxes."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

CHOSEN = 3.0
"""Constant that Mutual Guidance adds to the score of an anchor that a box chooses."""
CANDIDATES = 15
"""Number of best anchors of a box whose scores add up to the number of anchors that it chooses."""
SIGMA = 2.0
"""Divisor of the predicted probability p in the factor exp(p / SIGMA) by which Mutual Guidance amplifies an overlap."""


class Match(NamedTuple):
    """Box of each anchor."""

    index: Tensor  # type: ignore[assignment]  # tuple.index is not used
    """(B, A) long, 0..M-1; without meaning where `score` is 0."""
    score: Tensor
    """(B, A) float32."""


@torch.no_grad()
def overlaps(boxes: Tensor, valid: Tensor, others: Tensor) -> Tensor:
    """Compute the IoU (B, M, A) of ground-truth boxes with others; zero for invalid boxes and those without area.

    Args:
        boxes: (B, M, 4) x1 y1 x2 y2.
        valid: (B, M) bool.
        others: (A, 4) or (B, A, 4) x1 y1 x2 y2.
    """
    usable = valid & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    # A prediction may be infinite, or without area: it overlaps nothing.
    ious: Tensor = box_iou(boxes.float(), others.float())
    return ious.nan_to_num_(0, 0, 0).masked_fill_(~usable[..., None], 0)


@torch.no_grad()
def iou_match(overlaps: Tensor, valid: Tensor) -> Match:
    """Give each anchor the box of highest IoU, and each box its best anchor (SSD, Liu et al., ECCV 2016).

    Where boxes share their best anchor, the later box gets it. Boxes without area match nothing.

    Args:
        overlaps: (B, M, A) IoU with the anchors, M >= 1.
        valid: (B, M) bool, false for padding.

    Returns:
        Scores in 0..1: the IoU; 1 for the best anchor of a box; 0 in images without boxes.
    """
    score, index = overlaps.max(dim=1)
    highest, best = overlaps.max(dim=2)
    order = torch.arange(overlaps.shape[1], device=overlaps.device).expand_as(best)
    forced = torch.full_like(index, -1).scatter_reduce(1, best, order.masked_fill(~valid | (highest <= 0), -1), "amax")
    return Match(torch.where(forced >= 0, forced, index), torch.where(forced >= 0, 1.0, score))


@torch.no_grad()
def mutual_guidance(
    overlaps_anchors: Tensor, overlaps_predicted: Tensor, probabilities: Tensor, valid: Tensor
) -> tuple[Match, Match]:
    """Match by Mutual Guidance (Zhang et al., ACCV 2020).

    Anchors that predict a box well are to classify it; anchors that predict its class well are to regress it.

    Args:
        overlaps_anchors: (B, M, A) IoU with the anchors.
        overlaps_predicted: (B, M, A) IoU with the decoded predictions.
        probabilities: (B, M, A) predicted probability of each box's class, in 0..1.
        valid: (B, M) bool, false for padding.

    Returns:
        The matches for classification and for regression. Scores: the guiding overlap in 0..1, plus 3 for chosen
        anchors.
    """
    amplified = (overlaps_anchors * torch.exp(probabilities / SIGMA)).clamp(0, 1)
    return _choose(overlaps_predicted, valid), _choose(amplified, valid)


def _choose(scores: Tensor, valid: Tensor) -> Match:
    """Give each anchor its best box; each box then chooses as many anchors as its best ones' scores add up to."""
    best, index = scores.max(dim=1, keepdim=True)
    best_only = torch.zeros_like(scores).scatter_(1, index, best)
    top, anchors = best_only.topk(min(CANDIDATES, best_only.shape[2]), dim=2)
    count = top.sum(dim=2, keepdim=True).long().clamp(min=1)
    rank = torch.arange(top.shape[2], device=top.device)
    chosen = (rank < count) & valid[..., None]
    score, index = best_only.scatter_add_(2, anchors, (CHOSEN * chosen).to(best_only.dtype)).max(dim=1)
    return Match(index, score)
