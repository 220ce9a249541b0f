"""Supervised loss of segmentation: cross-entropy of every annotated pixel."""

from torch import Tensor
from torch.nn import functional as F

from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.segmentation.rows import IGNORE
from multas_ray.tasks.terms import Term


def segmentation_loss(logits: Tensor, masks: Tensor) -> dict[str, Term]:
    """Compute the cross-entropy at the mask's resolution.

    Args:
        logits: (B, C, h, w), resized to the mask's size bilinearly; B may be 0.
        masks: (B, H, W) uint8 class ids, 255 = ignore.

    Returns:
        The term `seg`, counted by the pixels that are not ignored.
    """
    count = (masks != IGNORE).sum().float()
    if not len(logits):
        return {"seg": Term(at_least_float32(logits).sum(), count)}
    full = F.interpolate(at_least_float32(logits), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    return {"seg": Term(F.cross_entropy(full, masks.long(), ignore_index=IGNORE, reduction="sum"), count)}
