"""Weak losses: a task is supervised on rows that are annotated for the other one only, by what follows from that."""

from typing import Any

from torch import Tensor

from multas_ray.config import Config, Task
from multas_ray.tasks.bombo.targets import weak_targets
from multas_ray.tasks.detection.anchors import anchors
from multas_ray.tasks.detection.loss import detection_losses
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.tasks.segmentation.loss import segmentation_loss
from multas_ray.tasks.terms import Term


def weak_loss(task: Task, output: Any, truth: Any, config: Config, size: tuple[int, int]) -> dict[str, Term]:
    """The weak loss of a task, as `TaskNetwork.loss` of weak annotation; its terms are named weak_*."""
    terms = _detection(output, truth, config, size) if task == "det" else segmentation_loss(output, truth)
    return {f"weak_{name}": term for name, term in terms.items()}


def _detection(
    output: DetectionOutput, components: UnitBoxes[Tensor], config: Config, size: tuple[int, int]
) -> dict[str, Term]:
    own_anchors = anchors(*size, config.model.anchor_base, output.cls.device, config.model.pyramid_levels)
    targets = weak_targets(components.boxes, components.labels, output, own_anchors)
    return detection_losses(output, targets, own_anchors, config.loss)
