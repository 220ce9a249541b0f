"""Boxes to learn from where there are masks only: components of the masks, corrected by what the network sees.

After BoMBo (Le, Berg and Pham, BMVC 2024): a component that holds several objects is split, components of one object
are joined.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from multas_ray.tasks.detection.anchors import decode
from multas_ray.tasks.detection.matching import overlaps
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes

SURE, SEPARATE = 0.5, 0.5
"""A prediction counts from this probability, and if it overlaps a surer one of its class by no more than this IoU."""
MOST = 50
"""Predictions of an image."""
HELD = 0.8
"""Part of a box that must lie in another to belong to it."""
ALIKE = 0.6
"""Least IoU of what belongs together with what it is to make up."""


def weak_targets(components: Tensor, labels: Tensor, output: DetectionOutput, anchors: Tensor) -> UnitBoxes[Tensor]:
    """Targets as `detection_losses` takes them. The network's outputs decide, without gradient, which components are
    joined and which are split.

    Args:
        components: (B, K, 4) x1 y1 x2 y2, normalised; K may be 0.
        labels: (B, K), -1 for padding.
        output: the detection head's, of the same rows.
        anchors: (A, 4).
    """
    with torch.no_grad():
        if not components.shape[1]:
            # A slot of padding, so that there is something to look at.
            components, labels = F.pad(components, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        boxes, labels = correct(components, labels, *sure_boxes(output.cls, output.box, anchors))
        # Most places are empty: as many columns as the fullest row needs.
        order = labels.argsort(dim=1, descending=True, stable=True)
        order = order[:, : int((labels >= 0).sum(dim=1).max()) if len(labels) else 0]
        boxes, labels = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
        return UnitBoxes(boxes, labels, torch.zeros_like(labels, dtype=torch.bool))


def sure_boxes(cls: Tensor, box: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, P, 4) that the network is sure of, in [0, 1], with labels (B, P), -1 for none, the surest first."""
    classes = cls.shape[2]
    scores, pairs = cls.float().sigmoid().flatten(1).topk(min(MOST, cls.shape[1] * classes), dim=1)
    places, labels = pairs // classes, pairs % classes
    codes = box.float().gather(1, places[..., None].expand(-1, -1, 4))
    boxes = decode(codes.flatten(0, 1), anchors[places.flatten()]).clamp(0, 1).unflatten(0, places.shape)
    rows, columns = torch.nonzero(scores > SURE, as_tuple=True)
    groups = rows * classes + labels[rows, columns]
    kept = batched_nms(boxes[rows, columns], scores[rows, columns], groups, SEPARATE)
    sure = torch.zeros_like(scores, dtype=torch.bool)
    sure[rows[kept], columns[kept]] = True
    return boxes, labels.masked_fill(~sure, -1)


def correct(components: Tensor, labels: Tensor, predicted: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, M, 4) and labels (B, M), -1 for none, of components joined and split as predictions suggest.

    Two or more components in a prediction of their class, which together cover what it covers, are one box: the
    smallest around them. A component in which two or more predictions of its class lie, which together cover what it
    covers, gives way to these predictions.

    Args:
        components: (B, K, 4) with labels (B, K), -1 for padding.
        predicted: (B, P, 4) with names, their labels (B, P), -1 for padding.
    """
    same = (labels[:, :, None] == names[:, None, :]) & (labels >= 0)[:, :, None]
    iou = overlaps(components, labels >= 0, predicted)

    held = same & (_part_inside(components, predicted) >= HELD)
    around = _smallest_around(components[:, :, None], held[..., None], dim=1)
    joined = (held.sum(dim=1) >= 2) & (_iou(around, predicted) >= ALIKE)

    parts = same & (_part_inside(predicted, components).transpose(1, 2) >= HELD) & (iou < ALIKE)
    whole = _smallest_around(predicted[:, None], parts[..., None], dim=2)
    split = (parts.sum(dim=2) >= 2) & (_iou(whole, components) >= ALIKE)

    gone = split | (held & joined[:, None]).any(dim=2)
    pieces = (parts & split[..., None]).any(dim=1)
    boxes = torch.cat([components, around.nan_to_num(0, 0, 0), predicted], dim=1)
    kept = [labels.masked_fill(gone, -1), names.masked_fill(~joined, -1), names.masked_fill(~pieces, -1)]
    return boxes, torch.cat(kept, dim=1)


def _part_inside(inner: Tensor, outer: Tensor) -> Tensor:
    """(B, N, M): the part of each of (B, N, 4) that lies in each of (B, M, 4)."""
    return _common(inner[:, :, None], outer[:, None]) / _area(inner)[:, :, None].clamp(min=1e-9)


def _smallest_around(boxes: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """The smallest box around those that are chosen; without any, one inside out."""
    low = boxes[..., :2].masked_fill(~chosen, torch.inf).amin(dim=dim)
    high = boxes[..., 2:].masked_fill(~chosen, -torch.inf).amax(dim=dim)
    return torch.cat([low, high], dim=-1)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of (..., 4) with (..., 4), pair by pair; 0 or not a number where one is inside out."""
    both = _common(a, b)
    return both / (_area(a) + _area(b) - both).clamp(min=1e-9)


def _common(a: Tensor, b: Tensor) -> Tensor:
    """Area that (..., 4) and (..., 4) share."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def _area(boxes: Tensor) -> Tensor:
    """Of (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
