"""Distillation: the student's outputs are drawn to those of a frozen teacher on the same pixels."""

from torch import Tensor
from torch.nn import functional as F

from multas_ray.loss.detection import balanced_l1, quality_focal_bce
from multas_ray.loss.terms import Term


def distill_detection(cls: Tensor, box: Tensor, teacher_cls: Tensor, teacher_box: Tensor) -> dict[str, Term]:
    """Prediction-guided distillation of a detector.

    Classes: binary cross-entropy to the teacher's probabilities p_t, weighted by (p_t - p_s)^2, so that the many
    anchors on which both agree (background, mostly) weigh nothing. Boxes: Balanced L1 between codes, each anchor
    weighted by the teacher's confidence, max over classes of p_t. Both are counted by the sum of the confidence over
    anchors, the soft form of a number of positives, so that they compare with the supervised losses.

    Args:
        cls, teacher_cls: (B, A, C) logits. B may be 0.
        box, teacher_box: (B, A, 4) codes.

    Returns:
        kd_det_cls and kd_det_box; both zero where student and teacher agree.
    """
    p_t = teacher_cls.detach().float().sigmoid()
    confidence = p_t.amax(dim=-1)
    mass = confidence.sum()
    cls_sum = quality_focal_bce(cls.float(), p_t).sum()
    box_sum = (confidence[..., None] * balanced_l1(box.float(), teacher_box.detach().float())).sum()
    return {"kd_det_cls": Term(cls_sum, mass), "kd_det_box": Term(box_sum, 4 * mass)}


def distill_segmentation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> dict[str, Term]:
    """T^2 * KL(teacher || student) of the class distributions softened by T (Hinton et al., 2015), a pixel.

    Args:
        logits, teacher_logits: (B, C, h, w). B may be 0.
        temperature: T > 0.

    Returns:
        kd_seg: counted by pixels.
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    pixels = student.new_tensor(logits.shape[0] * logits.shape[2] * logits.shape[3])
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return {"kd_seg": Term(temperature**2 * divergence, pixels)}
