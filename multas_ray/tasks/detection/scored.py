"""What detection metrics are computed from."""

from dataclasses import dataclass

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
"""Thresholds of IoU at which average precision is taken."""


@dataclass(frozen=True)
class ScoredImage:
    """One scored image. Boxes are (N, 4) float64 x1 y1 x2 y2 in its own pixels."""

    det_boxes: np.ndarray
    det_scores: np.ndarray
    det_labels: np.ndarray
    gt_boxes: np.ndarray
    gt_labels: np.ndarray
    gt_difficult: np.ndarray
