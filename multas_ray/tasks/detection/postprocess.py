"""Conversion of the detection head's raw outputs to boxes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from multas_ray.config import EvaluateConfig
from multas_ray.tasks.detection.anchors import decode
from multas_ray.tasks.detection.output import DetectionOutput

CANDIDATES = 1000
"""Number of best-scored (anchor, class) pairs of an image that enter non-maximum suppression."""


@dataclass(frozen=True)
class Detections:
    """Objects detected in one image, best score first."""

    boxes: Tensor
    """(N, 4) float32: x1 y1 x2 y2 as fractions of the image's width and height, in [0, 1]."""
    scores: Tensor
    """(N,) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64 in 0..C-1."""


@torch.no_grad()
def detect(output: DetectionOutput, anchors: Tensor, config: EvaluateConfig) -> list[Detections]:
    """Decode, threshold and suppress, each image by itself.

    Args:
        output: output of the head for B images.
        anchors: (A, 4) cx cy w h, normalised.
        config: thresholds, and the kind of suppression; `agnostic` as in the paper: an anchor stands for its best class
            only, and boxes suppress those of other classes.

    Returns:
        B detections, on the device of the output.
    """
    agnostic = config.nms == "agnostic"
    classes = output.cls.shape[2]
    scores = output.cls.float().sigmoid()
    if agnostic:
        scores = scores.where(scores == scores.amax(dim=2, keepdim=True), 0)
    scores = scores.flatten(1)
    top_scores, top_pairs = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
    detections = []
    for image_scores, pairs, codes in zip(top_scores, top_pairs, output.box.float(), strict=True):
        chosen = pairs // classes
        boxes, labels = decode(codes[chosen], anchors[chosen]).clamp(0, 1), pairs % classes
        # A box beside the image has no area left.
        valid = (image_scores > config.score_threshold) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        boxes, image_scores, labels = boxes[valid], image_scores[valid], labels[valid]
        # Fractions serve NMS as well as pixels: IoU does not change when an axis is stretched.
        groups = torch.zeros_like(labels) if agnostic else labels
        keep = batched_nms(boxes, image_scores, groups, config.nms_iou)[: config.max_detections]
        detections.append(Detections(boxes[keep], image_scores[keep], labels[keep]))
    return detections
