"""Supervised losses of detection: focal loss on classes, Balanced L1 on boxes."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.config import LossConfig
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.detection.anchors import corners, decode, encode
from multas_ray.tasks.detection.matching import CHOSEN, iou_match, mutual_guidance, overlaps
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.tasks.terms import SURELY_ABSENT, Term

POSITIVE = 0.5
"""Smallest IoU of a positive anchor with its box."""
NEGATIVE = 0.4
"""IoU below which an anchor is background."""
QUALITY_WEIGHT = 2.0
"""Weight of the generalised focal loss, as published."""


class Assignment(NamedTuple):
    """Classification and regression targets of each anchor."""

    cls_index: Tensor
    """(B, A) long: index of the box whose class is to be predicted."""
    cls_target: Tensor
    """(B, A) float32: target of that class in 0..1; 0 for background."""
    ignored: Tensor
    """(B, A) bool: the class's column counts neither as object nor as background; the other columns do."""
    box_index: Tensor
    """(B, A) long: index of the box to regress."""
    box_weight: Tensor
    """(B, A) float32: weight of its codes; 0 for no regression."""


class Candidates(NamedTuple):
    """Ground-truth boxes that anchors are assigned to, with M >= 1 slots a row."""

    boxes: Tensor
    """(B, M, 4) float32 x1 y1 x2 y2, normalised."""
    labels: Tensor
    """(B, M) long, -1 for padding."""
    valid: Tensor
    """(B, M) bool: neither padding nor difficult."""
    ious: Tensor
    """(B, M, A) float32 IoU with the anchors; 0 for boxes that are not valid."""


def detection_losses(
    output: DetectionOutput,
    truth: UnitBoxes[Tensor],
    anchors: Tensor,
    config: LossConfig,
    unlabelled: Tensor | None = None,
) -> dict[str, Term]:
    """Compute the losses of the annotated rows of a batch, in the published forms.

    Difficult objects are no targets, and an anchor that overlaps one by 0.4 or more, or is its best anchor, and is no
    other object's positive, contributes nothing.

    The column of an unlabelled class has weight 0 at every anchor of its row. Matching, boxes and counts are the same
    with it as without.

    Args:
        output: output of the head for B rows; B may be 0.
        truth: boxes of these rows, as tensors; M may be 0.
        anchors: (A, 4) cx cy w h, normalised.
        config: matching and classification loss.
        unlabelled: (B, C) bool: classes that nobody looked for in a row; None for none.

    Returns:
        det_cls: focal or generalised focal loss, counted by positives. det_box: Balanced L1 over the codes of
        positives, counted by their coordinates, in Mutual Guidance weighted by their quality.
    """
    output = DetectionOutput(at_least_float32(output.cls), at_least_float32(output.box))
    boxes, labels, difficult = truth.boxes.float(), truth.labels, truth.difficult
    if not boxes.shape[1]:
        # A slot of padding, so that there is something to match against in a batch without objects.
        boxes, labels, difficult = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1), F.pad(difficult, (0, 1))
    difficult = difficult & (labels >= 0)
    valid = (labels >= 0) & ~difficult
    ious = overlaps(boxes, labels >= 0, corners(anchors))
    on_difficult = _on_difficult(ious, difficult)
    candidates = Candidates(boxes, labels, valid, ious.masked_fill(~valid[..., None], 0))
    if config.matching == "iou":
        assigned = _by_iou(candidates)
    else:
        assigned = _by_mutual_guidance(candidates, output, anchors, config)

    # A column of logit -inf would be NaN times 0; at this one both loss and gradient are exactly 0.
    cls = output.cls if unlabelled is None else output.cls.masked_fill(unlabelled[:, None], SURELY_ABSENT)
    background = focal_background(cls, *_background_form(config))
    skipped = on_difficult & (assigned.cls_target <= 0)
    column = labels.gather(1, assigned.cls_index).clamp(min=0)
    touched = ((assigned.cls_target > 0) | assigned.ignored) & ~skipped
    if unlabelled is not None:
        touched &= ~unlabelled.gather(1, column)
    cls_sum = background.masked_fill(skipped, 0).sum() + _foreground(cls, column, assigned, touched, config)
    count = (assigned.cls_target > 0).sum().float()

    rows, places = torch.nonzero(assigned.box_weight, as_tuple=True)
    weight = assigned.box_weight[rows, places]
    goal = encode(boxes[rows, assigned.box_index[rows, places]], anchors[places])
    box_sum = (balanced_l1(output.box[rows, places], goal) * weight[:, None]).sum()
    return {
        # Weights of Mutual Guidance may add up to less than one.
        "det_box": Term(box_sum, 4 * weight.sum(), least=1e-6),
        "det_cls": Term(cls_sum, count),
    }


def _on_difficult(ious: Tensor, difficult: Tensor) -> Tensor:
    """Mark the anchors (B, A) that would be positive or ignored for a difficult object, from IoUs (B, M, A)."""
    if not difficult.any():
        return torch.zeros_like(ious[:, 0], dtype=torch.bool)
    ious = ious.masked_fill(~difficult[..., None], 0)
    enough = ious.amax(dim=2, keepdim=True).clamp(max=NEGATIVE)
    return ((ious >= enough) & (ious > 0)).any(dim=1)


def _by_iou(candidates: Candidates) -> Assignment:
    """Assign anchors by IoU.

    Positive from 0.5, or as the best anchor of a box; from 0.4 ignored, in the matched class's column only.
    """
    index, score = iou_match(candidates.ious, candidates.valid)
    positive = score >= POSITIVE
    target = positive.float()
    return Assignment(index, target, (score >= NEGATIVE) & ~positive, index, target)


def _by_mutual_guidance(
    candidates: Candidates, output: DetectionOutput, anchors: Tensor, config: LossConfig
) -> Assignment:
    """Assign anchors by Mutual Guidance.

    Chosen anchors are positive; their quality is the weight of their boxes, and the target of the generalised focal
    loss. No anchor is ignored.
    """
    boxes, labels, valid, ious = candidates
    cls, box = output.cls, output.box
    with torch.no_grad():
        predicted = overlaps(boxes, valid, decode(box, anchors))
        columns = labels.clamp(min=0)[:, None].expand(-1, cls.shape[1], -1)
        probabilities = cls.gather(2, columns).sigmoid().transpose(1, 2)
        classify, regress = mutual_guidance(ious, predicted, probabilities, valid)
        target, weight = ((match.score - CHOSEN).clamp(min=0) for match in (classify, regress))
        if config.classification == "focal":
            target = (classify.score >= CHOSEN).float()
        return Assignment(classify.index, target, torch.zeros_like(target, dtype=torch.bool), regress.index, weight)


def _background_form(config: LossConfig) -> tuple[float, float]:
    """Return weight and exponent of the background's loss, weight * p**exponent * -log(1 - p)."""
    if config.classification == "focal":
        return 1 - config.focal_alpha, config.focal_gamma
    return QUALITY_WEIGHT, 2.0


def _foreground(cls: Tensor, column: Tensor, assigned: Assignment, touched: Tensor, config: LossConfig) -> Tensor:
    """Sum the loss in the matched class's column (B, A) of touched anchors, less the background's loss there."""
    rows, places = torch.nonzero(touched, as_tuple=True)
    logits = cls[rows, places, column[rows, places]]
    target = assigned.cls_target[rows, places]
    if config.classification == "focal":
        loss = focal_bce(logits, target, config.focal_alpha, config.focal_gamma)
    else:
        loss = QUALITY_WEIGHT * quality_focal_bce(logits, target)
    loss = torch.where(target > 0, loss, 0)
    return (loss - focal_background(logits[:, None], *_background_form(config))).sum()


def balanced_l1(input: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 1.5, beta: float = 0.11) -> Tensor:
    """Compute the Balanced L1 loss, elementwise (Libra R-CNN, Pang et al., CVPR 2019, eq. 9).

    The form is that of its code for beta != 1. Beyond `beta` the loss is linear with slope `gamma`; `alpha` lifts the
    gradient of the inliers below.
    """
    error = (input - target).abs()
    b = math.exp(gamma / alpha) - 1
    inlier = alpha / b * (b * error + 1) * torch.log1p(b * error / beta) - alpha * error
    outlier = gamma * error + gamma / b - alpha * beta
    return torch.where(error < beta, inlier, outlier)


def focal_bce(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Compute the focal loss for targets in 0..1, elementwise (Lin et al., ICCV 2017, where targets are 0 or 1).

    Its weight is the expected weight if the target is read as the probability of a label 1.
    """
    p = logits.sigmoid()
    balance = alpha * target + (1 - alpha) * (1 - target)
    # The floor keeps the gradient of the power finite for gamma < 1.
    surprise = ((1 - p) * target + p * (1 - target)).clamp(min=1e-12)
    return balance * surprise**gamma * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def quality_focal_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the quality focal loss with beta = 2, elementwise (Li et al., NeurIPS 2020, eq. 4).

    It is (target - p)^2 * BCE for targets in 0..1, and zero where the prediction equals the target.
    """
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (target - logits.sigmoid()).square() * bce


def focal_background(logits: Tensor, weight: float, gamma: float) -> Tensor:
    """Sum the focal loss of target 0, weight * p**gamma * -log(1 - p), over the classes: (..., C) to (...).

    Nearly all of detection's columns are background. Here they take a third of the passes over memory that they would
    take as targets of a general loss.
    """
    loss: Tensor = _FocalBackground.apply(logits, weight, gamma)
    return loss


class _FocalBackground(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, weight: float, gamma: float) -> Tensor:
        p = logits.sigmoid()
        surprise = F.softplus(logits)  # -log(1 - p)
        power = p if gamma == 1 else p.clamp(min=1e-12).pow(gamma)
        loss = (power * surprise).sum(dim=-1) * weight
        if ctx.needs_input_grad[0]:
            # d/dz (p**g * s) = p**g * (g * (1 - p) * s + p), with dp/dz = p * (1 - p) and ds/dz = p.
            slope = surprise if gamma == 1 else surprise.mul_(gamma)
            ctx.save_for_backward(torch.addcmul(slope, slope, p, value=-1).add_(p).mul_(power))
            ctx.weight = weight
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (gradient * ctx.weight)[..., None] * slope, None, None
