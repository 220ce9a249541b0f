"""Conversion of any detector's answer to anchors, so that a student can be compared with it anchor by anchor."""

import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.tasks.detection.anchors import corners, encode
from multas_ray.tasks.detection.loss import POSITIVE
from multas_ray.tasks.detection.matching import iou_match, overlaps
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.packed import TINY


@torch.no_grad()
def anchored(boxes: Tensor, probabilities: Tensor, anchors: Tensor) -> DetectionOutput:
    """Give every anchor the box and the class probabilities of its detection.

    That is, among the detections that it overlaps by an IoU of 0.5 or more, the one whose IoU times confidence is
    largest, so that no weak suspicion hides a sure object; each detection also gets its best anchor in any case. The
    other anchors have a probability near zero of every class, and codes of zero.

    Decoding returns the detections, except those that share their best anchor with a more confident one and overlap no
    other anchor by 0.5: small objects beside each other.

    Args:
        boxes: (n, M, 4) x1 y1 x2 y2, as fractions of the image's sides; M may be 0.
        probabilities: (n, M, C) in 0..1, each class a sigmoid of its own; all zero for padding.
        anchors: (A, 4) cx cy w h, normalised.

    Returns:
        cls (n, A, C) logits, box (n, A, 4) codes.
    """
    if not boxes.shape[1]:
        # A slot of padding, so that there is something to match against.
        boxes, probabilities = F.pad(boxes, (0, 0, 0, 1)), F.pad(probabilities, (0, 0, 0, 1))
    confidence = probabilities.amax(dim=2)
    # `iou_match` gives an anchor that several boxes share to the last of them.
    order = confidence.argsort(dim=1, stable=True)
    boxes, probabilities = _at(boxes, order), _at(probabilities, order)
    valid = confidence.gather(1, order) > 0
    shared = overlaps(boxes, valid, corners(anchors))
    # The best anchor of a box is the same by this score. Below 1 are the anchors that no box overlaps enough.
    score = shared * confidence.gather(1, order)[..., None] + (shared >= POSITIVE)
    match = iou_match(score, valid)
    seen = (match.score >= 1)[..., None]
    codes = encode(_at(boxes, match.index), anchors)
    cls = torch.where(seen, _at(probabilities, match.index), 0).clamp(TINY, 1 - TINY).logit()
    return DetectionOutput(cls, torch.where(seen, codes, 0))


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Gather values (n, M, k) at places (n, m) along the second axis: (n, m, k)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))
