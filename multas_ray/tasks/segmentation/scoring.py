"""Segmentation scored: a pixel's class is that of its largest logit, brought to the image's own size."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from multas_ray.config import EvaluateConfig, ModelConfig
from multas_ray.tasks.segmentation.metric import SegmentationMetric


def predict(output: Tensor, config: EvaluateConfig, model: ModelConfig, size: tuple[int, int]) -> list[Tensor]:
    """See `TaskScoring`: the logits (C, h, w) of each row."""
    return list(output)


def metric(classes: Sequence[str], config: EvaluateConfig) -> SegmentationMetric:
    """See `TaskScoring`."""
    return SegmentationMetric(classes)


def add(metric: SegmentationMetric, image_id: str, size: tuple[int, int], found: Tensor, truth: np.ndarray) -> None:
    """See `TaskScoring`."""
    metric.add(found, truth)
