"""Supervised loss of segmentation: cross-entropy of every annotated pixel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.segmentation.rows import IGNORE
from multas_ray.tasks.terms import Term


def segmentation_loss(logits: Tensor, masks: Tensor, unlabelled: Tensor | None = None) -> dict[str, Term]:
    """Compute the cross-entropy at the mask's resolution.

    Where classes are unlabelled, a pixel of background may be of any of them: it costs -log(q_background + sum of
    q_unlabelled), the marginal likelihood (Shi et al., arXiv 2007.03868; Cermelli et al., CVPR 2020).

    Args:
        logits: (B, C, h, w), resized to the mask's size bilinearly; B may be 0.
        masks: (B, H, W) uint8 class ids, 255 = ignore.
        unlabelled: (B, C) bool: classes that nobody looked for in a row; None for none. Class 0 is the background.

    Returns:
        The term `seg`, counted by the pixels that are not ignored.
    """
    count = (masks != IGNORE).sum().float()
    if not len(logits):
        return {"seg": Term(at_least_float32(logits).sum(), count)}
    full = F.interpolate(at_least_float32(logits), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    targets = masks.long()
    if unlabelled is not None:
        full = merged_background(full, unlabelled)
        # What is said of a class that nobody looked for on purpose says no more than that the others are not there.
        said = unlabelled.gather(1, targets.flatten(1).clamp(max=unlabelled.shape[1] - 1)).view_as(targets)
        targets = targets.masked_fill(said & (targets != IGNORE), 0)
    return {"seg": Term(F.cross_entropy(full, targets, ignore_index=IGNORE, reduction="sum"), count)}


def merged_background(logits: Tensor, hidden: Tensor) -> Tensor:
    """Merge classes into the background, so that its probability is the sum of theirs and its own.

    Args:
        logits: (B, C, h, w); class 0 is the background.
        hidden: (B, C) bool: classes that are merged into it.

    Returns:
        (B, C, h, w) logits; -inf for the merged classes.
    """
    inside = hidden.clone()
    inside[:, 0] = True
    background = logits.masked_fill(~inside[..., None, None], -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(hidden[:, 1:, None, None], -torch.inf)], dim=1)
