"""Weak losses: a task is supervised on rows with annotation for the other task only, by targets derived from it."""

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


def weak_loss(
    task: Task, output: Any, truth: Any, unlabelled: Tensor | None, config: Config, size: tuple[int, int]
) -> dict[str, Term]:
    """Compute the weak loss of a task, as `TaskNetwork.loss` does for weak annotation; its terms are named weak_*.

    Args:
        task: task whose head is supervised.
        output: output of that head for v rows; v may be 0.
        truth: weak annotation of these rows from `WeakAnnotations`, as tensors: `UnitBoxes` of mask components for
            det, masks (v, size / 4, size / 4) uint8 for seg.
        unlabelled: (v, C) bool: classes that nobody looked for in a row, of either task; None where there are none.
        config: configuration of the run.
        size: height and width of the network's input in pixels.
    """
    if task == "det":
        terms = _detection(output, truth, unlabelled, config, size)
    else:
        terms = segmentation_loss(output, truth, unlabelled)
    return {f"weak_{name}": term for name, term in terms.items()}


def _detection(
    output: DetectionOutput,
    components: UnitBoxes[Tensor],
    unlabelled: Tensor | None,
    config: Config,
    size: tuple[int, int],
) -> dict[str, Term]:
    grid = anchors(*size, config.model.anchor_base, output.cls.device, config.model.pyramid_levels)
    targets = weak_targets(components.boxes, components.labels, output, grid)
    return detection_losses(output, targets, grid, config.loss, unlabelled)
