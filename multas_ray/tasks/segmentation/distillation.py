"""Distillation of segmentation: the student's class distributions are drawn to those of a frozen teacher on the same
pixels.

Of published losses, weight 1 is the published strength. Teachers' tensors carry no gradient.
"""

from torch import Tensor
from torch.nn import functional as F

from multas_ray.config import SegmentationDistillConfig
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.terms import Term, scalar, scaled


def segmentation_distillation(logits: Tensor, teacher: Tensor, config: SegmentationDistillConfig) -> dict[str, Term]:
    """The configured losses between two segmentation networks, weighted among one another.

    Args:
        logits: (B, C, H, W); brought to the teacher's resolution by averaging. B may be 0.
        teacher: (B, C, h, w) logits.
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
    """T^2 * KL(teacher || student) of the class distributions softened by T (Hinton et al., 2015), a pixel's mean.

    Args:
        logits, teacher: (B, C, h, w). B may be 0.
        temperature: T > 0.
    """
    pixels = scalar(logits.shape[0] * logits.shape[2] * logits.shape[3], logits)
    return {"kd_seg_kl": Term(_divergence(logits, teacher, temperature, dim=1), pixels)}


def channel_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> dict[str, Term]:
    """Channel-wise distillation (Shu et al., ICCV 2021): T^2 * KL(teacher || student) of each class's distribution over
    the pixels, the mean over classes and images.

    Args:
        logits, teacher: (B, C, h, w). B may be 0.
        temperature: T > 0.
    """
    maps = scalar(logits.shape[0] * logits.shape[1], logits)
    return {"kd_seg_cwd": Term(_divergence(logits.flatten(2), teacher.flatten(2), temperature, dim=2), maps)}


def _divergence(logits: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    own = F.log_softmax(at_least_float32(logits) / temperature, dim=dim)
    goal = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=dim)
    return temperature**2 * F.kl_div(own, goal, reduction="sum", log_target=True)
