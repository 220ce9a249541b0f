"""Detection targets of rows with masks only: components of the masks, corrected by the network's own predictions.

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

MIN_PROBABILITY, MAX_IOU = 0.5, 0.5
"""Lowest probability of a prediction that counts, and its largest IoU with a more confident one of its class."""
MAX_PREDICTIONS = 50
"""Largest number of predictions of an image."""
MIN_CONTAINED = 0.8
"""Smallest fraction of a box's area that lies in another box that it is a part of."""
MIN_UNION_IOU = 0.6
"""Smallest IoU of a box with the smallest box around its parts."""


def weak_targets(components: Tensor, labels: Tensor, output: DetectionOutput, anchors: Tensor) -> UnitBoxes[Tensor]:
    """Correct components into targets, as `detection_losses` takes them.

    The network's outputs decide, without gradient, which components are joined and which are split.

    Args:
        components: (B, K, 4) x1 y1 x2 y2, normalised; K may be 0.
        labels: (B, K) long, -1 for padding.
        output: output of the detection head for the same rows.
        anchors: (A, 4) cx cy w h, normalised.
    """
    with torch.no_grad():
        if not components.shape[1]:
            # A slot of padding: reductions over no components are errors.
            components, labels = F.pad(components, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        boxes, labels = correct(components, labels, *sure_boxes(output.cls, output.box, anchors))
        # Most places are empty: as many columns as the fullest row needs.
        order = labels.argsort(dim=1, descending=True, stable=True)
        order = order[:, : int((labels >= 0).sum(dim=1).max()) if len(labels) else 0]
        boxes, labels = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
        return UnitBoxes(boxes, labels, torch.zeros_like(labels, dtype=torch.bool))


def sure_boxes(cls: Tensor, box: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Select the predictions of high confidence, without overlapping ones of the same class.

    Args:
        cls: (B, A, C) logits.
        box: (B, A, 4) codes.
        anchors: (A, 4) cx cy w h, normalised.

    Returns:
        Boxes (B, P, 4) x1 y1 x2 y2 in [0, 1] and labels (B, P) long, -1 for none; the most confident first.
    """
    classes = cls.shape[2]
    scores, pairs = cls.float().sigmoid().flatten(1).topk(min(MAX_PREDICTIONS, cls.shape[1] * classes), dim=1)
    places, labels = pairs // classes, pairs % classes
    codes = box.float().gather(1, places[..., None].expand(-1, -1, 4))
    boxes = decode(codes.flatten(0, 1), anchors[places.flatten()]).clamp(0, 1).unflatten(0, places.shape)
    rows, columns = torch.nonzero(scores > MIN_PROBABILITY, as_tuple=True)
    groups = rows * classes + labels[rows, columns]
    separate = batched_nms(boxes[rows, columns], scores[rows, columns], groups, MAX_IOU)
    sure = torch.zeros_like(scores, dtype=torch.bool)
    sure[rows[separate], columns[separate]] = True
    return boxes, labels.masked_fill(~sure, -1)


def correct(components: Tensor, labels: Tensor, predicted: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
    """Join and split components as predictions suggest.

    Two or more components in a prediction of their class, which together cover what it covers, are one box: the
    smallest around them. A component in which two or more predictions of its class lie, which together cover what it
    covers, gives way to these predictions.

    Args:
        components: (B, K, 4) x1 y1 x2 y2, normalised.
        labels: (B, K) long: labels of the components, -1 for padding.
        predicted: (B, P, 4) x1 y1 x2 y2, normalised.
        names: (B, P) long: labels of the predictions, -1 for padding.

    Returns:
        Boxes (B, M, 4) and labels (B, M), -1 for none, with M = K + 2 P.
    """
    same = (labels[:, :, None] == names[:, None, :]) & (labels >= 0)[:, :, None]
    iou = overlaps(components, labels >= 0, predicted)

    inside = same & (_part_inside(components, predicted) >= MIN_CONTAINED)
    around = _smallest_around(components[:, :, None], inside[..., None], dim=1)
    joined = (inside.sum(dim=1) >= 2) & (_iou(around, predicted) >= MIN_UNION_IOU)

    parts = same & (_part_inside(predicted, components).transpose(1, 2) >= MIN_CONTAINED) & (iou < MIN_UNION_IOU)
    whole = _smallest_around(predicted[:, None], parts[..., None], dim=2)
    split = (parts.sum(dim=2) >= 2) & (_iou(whole, components) >= MIN_UNION_IOU)

    replaced = split | (inside & joined[:, None]).any(dim=2)
    pieces = (parts & split[..., None]).any(dim=1)
    boxes = torch.cat([components, around.nan_to_num(0, 0, 0), predicted], dim=1)
    box_labels = [labels.masked_fill(replaced, -1), names.masked_fill(~joined, -1), names.masked_fill(~pieces, -1)]
    return boxes, torch.cat(box_labels, dim=1)


def _part_inside(inner: Tensor, outer: Tensor) -> Tensor:
    """Fraction (B, N, M) of the area of each inner box (B, N, 4) that lies in each outer box (B, M, 4)."""
    return _common(inner[:, :, None], outer[:, None]) / _area(inner)[:, :, None].clamp(min=1e-9)


def _smallest_around(boxes: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Smallest box around the chosen boxes, reduced along `dim`; without any, an inverted box of infinite corners."""
    low = boxes[..., :2].masked_fill(~chosen, torch.inf).amin(dim=dim)
    high = boxes[..., 2:].masked_fill(~chosen, -torch.inf).amax(dim=dim)
    return torch.cat([low, high], dim=-1)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...) of boxes (..., 4) and boxes (..., 4), pair by pair; 0 or NaN where one is inverted."""
    both = _common(a, b)
    return both / (_area(a) + _area(b) - both).clamp(min=1e-9)


def _common(a: Tensor, b: Tensor) -> Tensor:
    """Area (...) of the intersection of boxes (..., 4) and boxes (..., 4)."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def _area(boxes: Tensor) -> Tensor:
    """Area (...) of boxes (..., 4) x1 y1 x2 y2."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
