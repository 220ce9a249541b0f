"""Input of the detection metrics."""

from dataclasses import dataclass

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
"""Thresholds of IoU at which average precision is taken."""


@dataclass(frozen=True)
class ScoredImage:
    """Detections (D) and ground truth (G) of one image. Boxes are x1 y1 x2 y2 in its own pixels."""

    det_boxes: np.ndarray
    """(D, 4) float64."""
    det_scores: np.ndarray
    """(D,) float64, best first."""
    det_labels: np.ndarray
    """(D,) int64."""
    gt_boxes: np.ndarray
    """(G, 4) float64."""
    gt_labels: np.ndarray
    """(G,) int64."""
    gt_difficult: np.ndarray
    """(G,) bool."""
