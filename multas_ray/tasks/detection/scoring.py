"""Detection scored: from the head's output to boxes, and from boxes to average precision."""

from collections.abc import Sequence

from multas_ray.config import EvaluateConfig, ModelConfig
from multas_ray.tasks.detection.anchors import anchors
from multas_ray.tasks.detection.metric import DetectionMetric
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.postprocess import Detections, detect
from multas_ray.tasks.detection.rows import PixelBoxes


def predict(
    output: DetectionOutput, config: EvaluateConfig, model: ModelConfig, size: tuple[int, int]
) -> list[Detections]:
    """See `TaskScoring`."""
    return detect(
        output.cls,
        output.box,
        anchors(*size, model.anchor_base, output.cls.device, model.pyramid_levels),
        config.score_threshold,
        config.nms_iou,
        config.max_detections,
        agnostic=config.nms == "agnostic",
    )


def metric(classes: Sequence[str], config: EvaluateConfig) -> DetectionMetric:
    """See `TaskScoring`."""
    return DetectionMetric(classes, config.protocol)


def add(metric: DetectionMetric, image_id: str, size: tuple[int, int], found: Detections, truth: PixelBoxes) -> None:
    """See `TaskScoring`."""
    height, width = size
    metric.add(image_id, width, height, found, *truth)
