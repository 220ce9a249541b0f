"""Predictions in the pixels of their images."""

from dataclasses import dataclass

import numpy as np

from multas_ray.evaluate.evaluator import Prediction
from multas_ray.tasks.segmentation.metric import label_map


@dataclass(frozen=True)
class Annotation:
    """What a network finds in one image, in the image's own pixels. None for a task that the network does not have."""

    boxes: np.ndarray | None
    """(N, 4) float32 x1 y1 x2 y2, continuous, best score first."""
    labels: np.ndarray | None
    """(N,) int64: index in the network's `det_classes`."""
    scores: np.ndarray | None
    """(N,) float32 in [0, 1]."""
    mask: np.ndarray | None
    """(H, W) uint8: index in its `seg_classes`."""


def annotation(prediction: Prediction, height: int, width: int, score: float = 0) -> Annotation:
    """A prediction in the pixels of its image, without detections below a score."""
    boxes = labels = scores = mask = None
    found = prediction.get("det")
    if found is not None:
        kept = found.scores >= score
        boxes = found.boxes[kept].cpu().numpy() * np.array([width, height, width, height], np.float32)
        labels, scores = found.labels[kept].cpu().numpy(), found.scores[kept].cpu().numpy()
    if "seg" in prediction:
        mask = label_map(prediction["seg"], height, width).cpu().numpy()
    return Annotation(boxes, labels, scores, mask)
