"""Distillation of detection: losses between student and frozen teacher on the same pixels.

Weight 1 of a published loss is its published strength. Teachers' tensors carry no gradient.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.config import DetectionDistillConfig
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.detection.anchors import PER_CELL
from multas_ray.tasks.detection.loss import balanced_l1, focal_bce, quality_focal_bce
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.terms import Term, scalar, scaled

SOFT_CLASSES = 5e3
FEATURES = 5.0
"""Published factors of soft class targets and of feature losses."""
CONFIDENT = 0.5
"""Teacher's probability above which PDF-Distil counts an object."""
TINY = 1e-12
"""Lower bound of a sum of weights as a divisor."""
SEEN = 0.02
"""Teacher's probability above which an anchor counts as an object. The thousands of anchors below may add up to half of
the teacher's confidence in an image."""
BOX_SLOPE, BOX_NEAR = 1.5, 0.11
"""Slope of the guided box loss, and the difference of codes below which it is quadratic."""


def detection_distillation(
    student: DetectionOutput,
    teacher: DetectionOutput,
    foreground: Tensor | None,
    config: DetectionDistillConfig,
    classes: Tensor | None = None,
) -> dict[str, Term]:
    """Compute the configured losses between two detectors, each multiplied by its weight.

    Losses of classes compare the columns of the chosen classes. Losses of boxes compare the anchors that belong to
    one: `guided` weighs them by the confidence in these classes, the others take those of which the teacher finds one
    of these classes the most probable. Features belong to no class and are compared whole.

    Args:
        student: output for B rows; B may be 0.
        teacher: answer for the same rows, of the same shapes.
        foreground: (B, A/6) from `foreground_cells`, needed by DeFeat; all -1 in rows without annotated boxes.
        config: weights of the losses.
        classes: (B, C) bool: classes that are compared; None for all.
    """
    terms: dict[str, Term] = {}
    for name, loss in LOSSES.items():
        weight = getattr(config, name)
        if weight:
            terms |= scaled(loss(student, teacher, classes), weight)
    if config.defeat:
        assert foreground is not None
        terms |= scaled(defeat(student, teacher, foreground), config.defeat)
    return terms


def guided(student: DetectionOutput, teacher: DetectionOutput, classes: Tensor | None = None) -> dict[str, Term]:
    """Compute the losses of prediction-guided distillation.

    Classes: binary cross-entropy to the teacher's probabilities p_t, weighted by (p_t - p_s)^2, so that the many
    anchors on which both agree (background, mostly) weigh nothing. Boxes: smooth L1 between codes, each anchor on which
    the teacher sees something weighted by its confidence, max over the compared classes of p_t. Both are counted by the
    sum of the confidence over the anchors concerned, the soft form of a number of positives, so that they compare with
    the supervised losses.

    Smooth L1 has the slope of Balanced L1, but none of its jump at zero, where a good student arrives.
    """
    p_t = _probabilities(teacher)
    confidence = _of(classes, p_t).amax(dim=-1)
    cls_sum = _of(classes, quality_focal_bce(at_least_float32(student.cls), p_t)).sum()
    seen = confidence * (confidence > SEEN)
    goal = at_least_float32(teacher.box.detach())
    difference = BOX_SLOPE * F.smooth_l1_loss(at_least_float32(student.box), goal, reduction="none", beta=BOX_NEAR)
    box_sum = (seen[..., None] * difference).sum()
    return {"kd_det_guided_cls": Term(cls_sum, confidence.sum()), "kd_det_guided_box": Term(box_sum, 4 * seen.sum())}


def soft_classes(student: DetectionOutput, teacher: DetectionOutput, classes: Tensor | None = None) -> dict[str, Term]:
    """Compute the paper's loss to soft class targets.

    It is 5000 times the mean over all anchors and compared classes of the focal loss (alpha 0.25, gamma 1) to the
    teacher's probabilities.
    """
    cls = at_least_float32(student.cls)
    loss = SOFT_CLASSES * _of(classes, focal_bce(cls, _probabilities(teacher), alpha=0.25, gamma=1.0)).sum()
    return {"kd_det_soft_cls": Term(loss, _compared(classes, cls))}


def soft_boxes(student: DetectionOutput, teacher: DetectionOutput, classes: Tensor | None = None) -> dict[str, Term]:
    """Compute the paper's loss to soft box targets: the mean Balanced L1 between the codes of all anchors."""
    difference = balanced_l1(at_least_float32(student.box), at_least_float32(teacher.box.detach()))
    return {"kd_det_soft_box": _mean_box(difference, teacher, classes)}


def feature_mse(student: DetectionOutput, teacher: DetectionOutput, classes: Tensor | None = None) -> dict[str, Term]:
    """Compute five times the mean squared difference of features."""
    difference = _feature_difference(student, teacher)
    return {"kd_feature_mse": Term(FEATURES * difference.sum(), scalar(difference.numel(), difference))}


def pdf_distil(student: DetectionOutput, teacher: DetectionOutput, classes: Tensor | None = None) -> dict[str, Term]:
    """Compute the losses of PDF-Distil, on features, classes and boxes.

    Classes: binary cross-entropy weighted by D = (p_t - p_s)^2. Boxes: L1. Features: squared difference; a cell is
    weighted by the mean over its anchors of sqrt(sum over the compared classes of D), and the weights of the batch add
    up to one over cells and channels. D and the weights carry no gradient.
    """
    cls, box = at_least_float32(student.cls), at_least_float32(student.box)
    p_t = _probabilities(teacher)
    with torch.no_grad():
        disagreement = _of(classes, (p_t - cls.sigmoid()).square())
        by_anchor = disagreement.sum(dim=-1).sqrt()
        weight = by_anchor.unflatten(1, (-1, PER_CELL)).mean(dim=-1, keepdim=True)
    difference = _feature_difference(student, teacher)
    bce = F.binary_cross_entropy_with_logits(cls, p_t, reduction="none")
    return {
        "kd_feature_pdf": Term(FEATURES * (weight * difference).sum(), difference.shape[-1] * weight.sum(), least=TINY),
        "kd_det_pdf_cls": Term((disagreement * bce).sum(), (_of(classes, p_t) > CONFIDENT).sum().float()),
        "kd_det_pdf_box": _mean_box((box - at_least_float32(teacher.box.detach())).abs(), teacher, classes),
    }


def defeat(student: DetectionOutput, teacher: DetectionOutput, foreground: Tensor) -> dict[str, Term]:
    """Compute the losses of DeFeat (Guo et al., CVPR 2021).

    They are the squared feature differences in cells with objects and in cells without, each divided by twice the
    number of such cells and by the number of images.

    Args:
        student: output for B rows, with features.
        teacher: answer for the same rows, with features.
        foreground: (B, A/6) from `foreground_cells`; rows without annotation are all -1 and do not count.
    """
    difference = _feature_difference(student, teacher).sum(dim=-1)
    images = (foreground >= 0).any(dim=1).sum().float()
    terms = {}
    for name, side in (("foreground", foreground == 1), ("background", foreground == 0)):
        count = torch.stack([side.sum().float(), images])
        terms[f"kd_feature_defeat_{name}"] = Term(0.5 * (difference * side).sum(), count)
    return terms


LOSSES: Mapping[str, Callable[[DetectionOutput, DetectionOutput, Tensor | None], dict[str, Term]]] = {
    "guided": guided,
    "soft_cls": soft_classes,
    "soft_box": soft_boxes,
    "mse": feature_mse,
    "pdf": pdf_distil,
}
"""Losses by the names of their weights in the configuration; DeFeat is apart, since it needs ground truth."""


def foreground_cells(boxes: Tensor, labels: Tensor, anchors: Tensor) -> Tensor:
    """Mark the cells whose centre lies in a ground-truth box.

    Args:
        boxes: (B, M, 4) x1 y1 x2 y2, normalised; M may be 0.
        labels: (B, M), -1 for padding.
        anchors: (A, 4) cx cy w h, normalised.

    Returns:
        (B, A/6) long: 1 for such cells, else 0.
    """
    centre = anchors[::PER_CELL, :2]
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    inside = ((centre > low) & (centre < high)).all(dim=-1) & (labels >= 0)[..., None]
    return inside.any(dim=1).long()


def _probabilities(teacher: DetectionOutput) -> Tensor:
    return at_least_float32(teacher.cls.detach()).sigmoid()


def _of(classes: Tensor | None, values: Tensor) -> Tensor:
    """Set the columns of values (B, A, C) that are not of the chosen classes (B, C) to zero, without gradient."""
    return values if classes is None else values.masked_fill(~classes[:, None], 0)


def _compared(classes: Tensor | None, values: Tensor) -> Tensor:
    """Count the values (B, A, C) of the chosen classes (B, C)."""
    if classes is None:
        return scalar(values.numel(), values)
    return classes.sum().float() * values.shape[1]


def _mean_box(difference: Tensor, teacher: DetectionOutput, classes: Tensor | None) -> Term:
    """Average the differences (B, A, 4) of box codes over the anchors that belong to one of the classes (B, C)."""
    if classes is None:
        return Term(difference.sum(), scalar(difference.numel(), difference))
    belongs = classes.gather(1, teacher.cls.argmax(dim=2))[..., None]
    return Term((difference * belongs).sum(), difference.shape[2] * belongs.sum().float())


def _feature_difference(student: DetectionOutput, teacher: DetectionOutput) -> Tensor:
    assert student.feature is not None
    assert teacher.feature is not None
    return (at_least_float32(student.feature) - at_least_float32(teacher.feature.detach())).square()
