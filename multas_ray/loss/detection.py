"""Supervised detection: focal loss on classes, Balanced L1 on boxes."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.loss.matching import iou_match
from multas_ray.loss.terms import Term
from multas_ray.model.anchors import encode

POSITIVE = 0.5
"""Least IoU of an anchor that answers for a box."""
NEGATIVE = 0.4
"""IoU below which an anchor is background."""


def detection_losses(
    cls: Tensor, box: Tensor, anchors: Tensor, targets: Mapping[str, Tensor], alpha: float, gamma: float
) -> dict[str, Term]:
    """Losses of the annotated rows of a batch.

    An anchor is positive for its matched box from IoU 0.5, or if it is the best one of the box. Between 0.4 and 0.5 it
    is ignored in the matched class's column only, as in the published method. Difficult objects are matched apart from
    the others: an anchor that matches one (IoU >= 0.4, or its best anchor) and is no other object's positive
    contributes nothing.

    Args:
        cls: (B, A, C) logits. B may be 0.
        box: (B, A, 4) codes.
        anchors: (A, 4) cx cy w h, normalised.
        targets: boxes (B, M, 4) x1 y1 x2 y2, normalised; labels (B, M) long, -1 for padding; difficult (B, M) bool.
            M may be 0.
        alpha, gamma: of the focal loss.

    Returns:
        det_cls: focal loss, counted by positives. det_box: Balanced L1 over the codes of positives, counted by their
        coordinates.
    """
    cls, box = cls.float(), box.float()
    # One slot of padding, so that there is something to match against in a batch without objects.
    boxes = F.pad(targets["boxes"].float(), (0, 0, 0, 1))
    labels = F.pad(targets["labels"], (0, 1), value=-1)
    difficult = F.pad(targets["difficult"], (0, 1))
    index, overlap = iou_match(boxes, (labels >= 0) & ~difficult, anchors)
    positive = overlap >= POSITIVE
    skipped = (iou_match(boxes, (labels >= 0) & difficult, anchors).overlap >= NEGATIVE) & ~positive

    column = F.one_hot(labels.gather(1, index).clamp(min=0), cls.shape[-1]).bool()
    ignored = column & ((overlap >= NEGATIVE) & ~positive)[..., None] | skipped[..., None]
    target = (column & positive[..., None]).to(cls.dtype)
    cls_sum = focal_bce(cls, target, alpha, gamma).masked_fill(ignored, 0).sum()

    matched = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    box_sum = balanced_l1(box, encode(matched, anchors)).masked_fill(~positive[..., None], 0).sum()
    count = positive.sum().to(cls.dtype)
    return {"det_box": Term(box_sum, 4 * count), "det_cls": Term(cls_sum, count)}


def balanced_l1(input: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 1.5, beta: float = 0.11) -> Tensor:
    """Balanced L1 loss, elementwise (Libra R-CNN, Pang et al., CVPR 2019, eq. 9, in the form that its code gives it for
    beta != 1).

    Beyond `beta` it is linear with slope `gamma`; `alpha` lifts the gradient of the inliers below.
    """
    error = (input - target).abs()
    b = math.exp(gamma / alpha) - 1
    inlier = alpha / b * (b * error + 1) * torch.log1p(b * error / beta) - alpha * error
    outlier = gamma * error + gamma / b - alpha * beta
    return torch.where(error < beta, inlier, outlier)


def focal_bce(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss for targets in 0..1, elementwise (Lin et al., ICCV 2017, where targets are 0 or 1).

    Its weight is the expected one, were the target a coin that comes up 1 with that probability.
    """
    p = logits.sigmoid()
    balance = alpha * target + (1 - alpha) * (1 - target)
    # The floor keeps the gradient of the power finite for gamma < 1.
    surprise = ((1 - p) * target + p * (1 - target)).clamp(min=1e-12)
    return balance * surprise**gamma * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def quality_focal_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Quality focal loss with beta = 2, elementwise: (target - p)^2 * BCE, for targets in 0..1 (Li et al., NeurIPS
    2020, eq. 4). Zero where the prediction equals the target."""
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (target - logits.sigmoid()).square() * bce
