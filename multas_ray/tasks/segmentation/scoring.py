"""Scoring of segmentation: a pixel's class is that of the largest logit, interpolated to the image's own size."""

from collections.abc import Sequence

from torch import Tensor

from multas_ray.config import EvaluateConfig, ModelConfig
from multas_ray.data.batch import AnnotatedImage
from multas_ray.tasks.segmentation.metric import SegmentationMetric


def predict(output: Tensor, config: EvaluateConfig, model: ModelConfig, size: tuple[int, int]) -> list[Tensor]:
    """Split the output for n rows into the logits (C, h, w) of each."""
    return list(output)


def metric(classes: Sequence[str], config: EvaluateConfig) -> SegmentationMetric:
    """Create an empty metric."""
    return SegmentationMetric(classes)


def add(metric: SegmentationMetric, image: AnnotatedImage, prediction: Tensor) -> None:
    """Add the logits (C, h, w) for an image to a metric."""
    metric.add(prediction, image.truth, image.unlabelled)
