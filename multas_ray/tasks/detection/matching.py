"""Which ground-truth box each anchor answers for."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

CHOSEN = 3.0
"""What Mutual Guidance adds to the score of an anchor that is chosen for a box."""
CANDIDATES = 15
"""Anchors whose scores add up to the number that Mutual Guidance chooses for a box."""
SIGMA = 2.0
"""How strongly Mutual Guidance lets the predicted class amplify an anchor's overlap: exp(p / SIGMA)."""


class Match(NamedTuple):
    """The box of each anchor."""

    index: Tensor  # type: ignore[assignment]  # tuple.index is not used
    """(B, A) long, 0..M-1; without meaning where `score` is 0."""
    score: Tensor
    """(B, A) float32."""


@torch.no_grad()
def overlaps(boxes: Tensor, valid: Tensor, others: Tensor) -> Tensor:
    """IoU (B, M, A) of ground-truth boxes with others; zero for invalid boxes and those without area.

    Args:
        boxes: (B, M, 4) x1 y1 x2 y2.
        valid: (B, M) bool.
        others: (A, 4) or (B, A, 4) x1 y1 x2 y2.
    """
    usable = valid & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    # A prediction may be infinite, or without area: it overlaps nothing.
    return box_iou(boxes.float(), others.float()).nan_to_num_(0, 0, 0).masked_fill_(~usable[..., None], 0)


@torch.no_grad()
def iou_match(overlaps: Tensor, valid: Tensor) -> Match:
    """Give each anchor the box of highest IoU, and each box its best anchor (SSD, Liu et al., ECCV 2016).

    Where boxes share their best anchor, the later box gets it. Boxes without area match nothing.

    Args:
        overlaps: (B, M, A) of `overlaps` with the anchors, M >= 1.
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
    """Mutual Guidance (Zhang et al., ACCV 2020): where a box is predicted well, the anchor should classify; where its
    class is predicted well, the anchor should regress.

    Args:
        overlaps_anchors, overlaps_predicted: (B, M, A) of `overlaps`, with anchors and decoded predictions.
        probabilities: (B, M, A) predicted, of each box's class, in 0..1.
        valid: (B, M) bool, false for padding.

    Returns:
        For classification and for regression. Scores: the guiding overlap in 0..1; 3 more for chosen anchors.
    """
    amplified = (overlaps_anchors * torch.exp(probabilities / SIGMA)).clamp(0, 1)
    return _choose(overlaps_predicted, valid), _choose(amplified, valid)


def _choose(scores: Tensor, valid: Tensor) -> Match:
    """Each anchor keeps its best box; each box then chooses as many anchors as its best ones' scores add up to."""
    best, index = scores.max(dim=1, keepdim=True)
    kept = torch.zeros_like(scores).scatter_(1, index, best)
    top, anchors = kept.topk(min(CANDIDATES, kept.shape[2]), dim=2)
    count = top.sum(dim=2, keepdim=True).long().clamp(min=1)
    rank = torch.arange(top.shape[2], device=top.device)
    chosen = (rank < count) & valid[..., None]
    score, index = kept.scatter_add_(2, anchors, (CHOSEN * chosen).to(kept.dtype)).max(dim=1)
    return Match(index, score)
