"""Calibration: whether what is said with a confidence of 0.7 is right in seven of ten cases, and what would mend it.

Of a detector each detection is such a statement; of a segmentation network each pixel is one, for its likeliest class.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
"""Number of bins of confidence (Guo et al., ICML 2017)."""
TEMPERATURES = np.geomspace(0.25, 4, 33)
"""Temperatures that are tried. Between the best and its neighbours, a parabola is laid."""
LEAST = 1e-6
"""Smallest distance of a confidence from 0 and 1."""


class Calibration:
    """Statements with their confidences, and which of them were right."""

    def __init__(self, classes: Sequence[str]) -> None:
        """Begin without statements on these classes."""
        self.classes = list(classes)
        self._bins = np.zeros((3, len(classes), BINS))
        self._cost = np.zeros(len(TEMPERATURES))

    def add_detections(self, scores: np.ndarray, labels: np.ndarray, right: np.ndarray) -> None:
        """Add m detections.

        Args:
            scores: (m,) in 0..1.
            labels: (m,) classes.
            right: (m,) bool.
        """
        self._count(scores, labels, right)
        sure = torch.as_tensor(scores, dtype=torch.float64).clamp(LEAST, 1 - LEAST).logit()
        goal = torch.as_tensor(right, dtype=torch.float64)
        for place, temperature in enumerate(TEMPERATURES):
            self._cost[place] += float(F.binary_cross_entropy_with_logits(sure / temperature, goal, reduction="sum"))

    def add_pixels(self, logits: Tensor, truth: Tensor) -> None:
        """Add m pixels.

        Args:
            logits: (m, C) of the classes that the network can tell apart, -inf for others.
            truth: (m,) class, one of these.
        """
        confidence, labels = logits.float().softmax(dim=1).max(dim=1)
        self._count(confidence.cpu().numpy(), labels.cpu().numpy(), (labels == truth).cpu().numpy())
        for place, temperature in enumerate(TEMPERATURES):
            self._cost[place] += float(F.cross_entropy(logits.float() / temperature, truth, reduction="sum"))

    def _count(self, confidence: np.ndarray, labels: np.ndarray, right: np.ndarray) -> None:
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        for sums, weights in zip(self._bins, (np.ones(len(right)), confidence, right), strict=True):
            np.add.at(sums, (labels, bins), weights)

    def errors(self) -> dict[str, float]:
        """Compute the expected calibration error by class, 0..1; a class of which nothing was said has none."""
        count, confidence, right = self._bins
        gap = np.abs(confidence - right).sum(axis=1)
        return {name: gap[k] / count[k].sum() for k, name in enumerate(self.classes) if count[k].any()}

    def error(self) -> float | None:
        """Compute the expected calibration error of all statements, 0..1; None without any."""
        count, confidence, right = self._bins.sum(axis=1)
        return float(np.abs(confidence - right).sum() / count.sum()) if count.any() else None

    def temperature(self) -> float | None:
        """Fit the divisor of the logits that makes what was right most likely; None without statements."""
        if not self._bins[0].any():
            return None
        best = int(self._cost.argmin())
        if best in (0, len(TEMPERATURES) - 1):
            return float(TEMPERATURES[best])
        left, middle, right = self._cost[best - 1 : best + 2]
        curvature = left - 2 * middle + right
        shift = 0.5 * (left - right) / curvature if curvature > 0 else 0.0
        step = np.log(TEMPERATURES[1] / TEMPERATURES[0])
        return float(TEMPERATURES[best] * np.exp(shift * step))
