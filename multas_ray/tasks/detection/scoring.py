"""Scoring of detection: from the head's output to boxes, and from boxes to average precision."""

from collections.abc import Sequence

from multas_ray.config import EvaluateConfig, ModelConfig
from multas_ray.data.batch import AnnotatedImage
from multas_ray.tasks.detection.anchors import anchors
from multas_ray.tasks.detection.metric import DetectionMetric
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.postprocess import Detections, detect


def predict(
    output: DetectionOutput, config: EvaluateConfig, model: ModelConfig, size: tuple[int, int]
) -> list[Detections]:
    """Convert the output for n rows into the detections of each."""
    return detect(output, anchors(*size, model.anchor_base, output.cls.device, model.pyramid_levels), config)


def metric(classes: Sequence[str], config: EvaluateConfig) -> DetectionMetric:
    """Create an empty metric by the configured protocol."""
    return DetectionMetric(classes, config.protocol)


def add(metric: DetectionMetric, image: AnnotatedImage, prediction: Detections) -> None:
    """Add the detections in an image to a metric."""
    metric.add(image, prediction)
