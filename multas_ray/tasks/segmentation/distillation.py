"""Distillation of segmentation: losses between student and frozen teacher on the same pixels.

Weight 1 of a published loss is its published strength. Teachers' tensors carry no gradient.
"""

from torch import Tensor
from torch.nn import functional as F

from multas_ray.config import SegmentationDistillConfig
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.terms import Term, scalar, scaled


def segmentation_distillation(logits: Tensor, teacher: Tensor, config: SegmentationDistillConfig) -> dict[str, Term]:
    """Compute the configured losses between two segmentation networks, each multiplied by its weight.

    Args:
        logits: (B, C, H, W) of the student, averaged to the teacher's resolution; B may be 0.
        teacher: (B, C, h, w) logits.
        config: weights and temperatures of the losses.
    """
    if logits.shape != teacher.shape:
        logits = F.adaptive_avg_pool2d(logits, (teacher.shape[2], teacher.shape[3]))
    terms: dict[str, Term] = {}
    if config.kl:
        terms |= scaled(class_divergence(logits, teacher, config.temperature), config.kl)
    if config.cwd:
        terms |= scaled(channel_divergence(logits, teacher, config.cwd_temperature), config.cwd)
    return terms


def class_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> dict[str, Term]:
    """Compute T^2 * KL(teacher || student) of the pixels' class distributions, softened by T (Hinton et al., 2015).

    The count is that of pixels.

    Args:
        logits: (B, C, h, w) of the student; B may be 0.
        teacher: (B, C, h, w) logits.
        temperature: T > 0.
    """
    pixels = scalar(logits.shape[0] * logits.shape[2] * logits.shape[3], logits)
    return {"kd_seg_kl": Term(_divergence(logits, teacher, temperature, dim=1), pixels)}


def channel_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> dict[str, Term]:
    """Compute the loss of channel-wise distillation (Shu et al., ICCV 2021).

    It is T^2 * KL(teacher || student) of each class's distribution over the pixels; the count is that of classes and
    images.

    Args:
        logits: (B, C, h, w) of the student; B may be 0.
        teacher: (B, C, h, w) logits.
        temperature: T > 0.
    """
    maps = scalar(logits.shape[0] * logits.shape[1], logits)
    return {"kd_seg_cwd": Term(_divergence(logits.flatten(2), teacher.flatten(2), temperature, dim=2), maps)}


def _divergence(logits: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    student = F.log_softmax(at_least_float32(logits) / temperature, dim=dim)
    goal = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=dim)
    return temperature**2 * F.kl_div(student, goal, reduction="sum", log_target=True)
