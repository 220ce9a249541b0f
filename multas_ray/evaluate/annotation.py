"""Predictions in the pixels of their images."""

from dataclasses import dataclass

import numpy as np

from multas_ray.evaluate.evaluator import Prediction
from multas_ray.tasks.detection.postprocess import Detections
from multas_ray.tasks.segmentation.metric import label_map


@dataclass(frozen=True)
class Annotation:
    """Prediction for one image, in the image's own pixels. Fields of a task that the network does not have are None."""

    boxes: np.ndarray | None
    """(N, 4) float32 x1 y1 x2 y2, continuous, best score first."""
    labels: np.ndarray | None
    """(N,) int64: indices in the network's `det_classes`."""
    scores: np.ndarray | None
    """(N,) float32 in [0, 1]."""
    mask: np.ndarray | None
    """(H, W) uint8: indices in its `seg_classes`."""


def annotation(prediction: Prediction, height: int, width: int, score: float = 0) -> Annotation:
    """Convert a prediction to the pixels of its image.

    Args:
        prediction: prediction of the network.
        height: height of the image in pixels.
        width: width of the image in pixels.
        score: lowest score of a detection in the result.
    """
    boxes = labels = scores = mask = None
    detections: Detections | None = prediction.get("det")
    if detections is not None:
        chosen = detections.scores >= score
        boxes = detections.boxes[chosen].cpu().numpy() * np.array([width, height, width, height], np.float32)
        labels, scores = detections.labels[chosen].cpu().numpy(), detections.scores[chosen].cpu().numpy()
    if "seg" in prediction:
        mask = label_map(prediction["seg"], height, width).cpu().numpy()
    return Annotation(boxes, labels, scores, mask)
