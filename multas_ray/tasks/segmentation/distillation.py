"""Distillation of segmentation: losses between student and frozen teacher on the same pixels.

Weight 1 of a published loss is its published strength. Teachers' tensors carry no gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.config import SegmentationDistillConfig
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.segmentation.loss import merged_background
from multas_ray.tasks.terms import Term, scalar, scaled


class Outcomes(NamedTuple):
    """What of two class distributions is compared, in B rows; class 0 is the background, where there is one."""

    classes: Tensor
    """(B, C) bool: classes that are learned."""
    inside: Tensor
    """(B, C) bool: classes that the distributions are over, renormalised."""
    merged: Tensor
    """(B, C) bool: those of them that count as background."""
    share: Tensor
    """(B, h, w) float32: weight of each pixel, 0..1."""


def segmentation_distillation(
    logits: Tensor, teacher: Tensor, config: SegmentationDistillConfig, compared: Outcomes | None = None
) -> dict[str, Term]:
    """Compute the configured losses between two segmentation networks, each multiplied by its weight.

    Args:
        logits: (B, C, H, W) of the student, averaged to the teacher's resolution; B may be 0.
        teacher: (B, C, h, w) logits.
        config: weights and temperatures of the losses.
        compared: what is compared; None for all of every row.
    """
    if logits.shape != teacher.shape:
        logits = F.adaptive_avg_pool2d(logits, (teacher.shape[2], teacher.shape[3]))
    terms: dict[str, Term] = {}
    if config.kl:
        terms |= scaled(class_divergence(logits, teacher, config.temperature, compared), config.kl)
    if config.cwd:
        terms |= scaled(channel_divergence(logits, teacher, config.cwd_temperature, compared), config.cwd)
    return terms


def class_divergence(
    logits: Tensor, teacher: Tensor, temperature: float, compared: Outcomes | None = None
) -> dict[str, Term]:
    """Compute T^2 * KL(teacher || student) of the pixels' class distributions, softened by T (Hinton et al., 2015).

    The count is that of pixels, each by its weight.

    Args:
        logits: (B, C, h, w) of the student; B may be 0.
        teacher: (B, C, h, w) logits.
        temperature: T > 0.
        compared: what is compared; None for all of every row.
    """
    if compared is None:
        pixels = scalar(logits.shape[0] * logits.shape[2] * logits.shape[3], logits)
        return {"kd_seg_kl": Term(_divergence(logits, teacher, temperature, dim=1), pixels)}
    student, goal = (
        _outcomes(at_least_float32(values) / temperature, compared).log_softmax(dim=1)
        for values in (logits, teacher.detach())
    )
    # -inf less -inf is NaN: classes that are not compared contribute zeros.
    absent = goal.isneginf()
    difference = goal.masked_fill(absent, 0) - student.masked_fill(absent, 0)
    by_pixel = temperature**2 * (goal.exp() * difference).sum(dim=1)
    return {"kd_seg_kl": Term((by_pixel * compared.share).sum(), compared.share.sum())}


def channel_divergence(
    logits: Tensor, teacher: Tensor, temperature: float, compared: Outcomes | None = None
) -> dict[str, Term]:
    """Compute the loss of channel-wise distillation (Shu et al., ICCV 2021).

    It is T^2 * KL(teacher || student) of each class's distribution over the pixels; the count is that of classes and
    images. Only those of the classes that are learned are compared.

    Args:
        logits: (B, C, h, w) of the student; B may be 0.
        teacher: (B, C, h, w) logits.
        temperature: T > 0.
        compared: what is compared; None for all of every row.
    """
    if compared is None:
        maps = scalar(logits.shape[0] * logits.shape[1], logits)
        return {"kd_seg_cwd": Term(_divergence(logits.flatten(2), teacher.flatten(2), temperature, dim=2), maps)}
    student, goal = (values.flatten(2)[compared.classes] for values in (logits, teacher))
    return {"kd_seg_cwd": Term(_divergence(student, goal, temperature, dim=1), compared.classes.sum().float())}


def _outcomes(logits: Tensor, compared: Outcomes) -> Tensor:
    """Merge and leave out classes of logits (B, C, h, w): -inf for those that are no longer there."""
    logits = logits.masked_fill(~compared.inside[..., None, None], -torch.inf)
    merging = compared.merged.any(dim=1)
    if not merging.any():
        return logits
    # Rows that merge nothing may have no background.
    return torch.where(merging[:, None, None, None], merged_background(logits, compared.merged), logits)


def _divergence(logits: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    student = F.log_softmax(at_least_float32(logits) / temperature, dim=dim)
    goal = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=dim)
    return temperature**2 * F.kl_div(student, goal, reduction="sum", log_target=True)
