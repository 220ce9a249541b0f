"""Detection in the network: its head, its losses, and a teacher's answer."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from multas_ray.config import Config, ModelConfig
from multas_ray.data.batch import Some, mapped
from multas_ray.errors import UserError
from multas_ray.model.paper import paper_norm
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.detection import packed as codec
from multas_ray.tasks.detection.anchors import PER_CELL, anchors, count_anchors
from multas_ray.tasks.detection.distillation import detection_distillation, foreground_cells
from multas_ray.tasks.detection.head import DetectionHead, LevelwiseDetectionHead, cells
from multas_ray.tasks.detection.loss import detection_losses
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.tasks.terms import Term

Head = DetectionHead | LevelwiseDetectionHead


def head(config: ModelConfig, classes: int) -> Head:
    """See `TaskNetwork`."""
    if config.preset == "paper":
        return LevelwiseDetectionHead(config.width, classes, config.pyramid_levels, paper_norm(config.norm))
    return DetectionHead(config.width, classes)


def run(head: Head, pyramid: Sequence[Tensor], adapters: nn.ModuleList | None, features: bool) -> DetectionOutput:
    """See `TaskNetwork`. Features are the pyramid's cells in the order of their anchors."""
    cls, box = head(pyramid)
    feature = None
    if features:
        if adapters is not None:
            pyramid = [adapter(level) for adapter, level in zip(adapters, pyramid, strict=True)]
        feature = at_least_float32(cells(pyramid))
    return DetectionOutput(at_least_float32(cls), at_least_float32(box), feature)


def nothing(head: Head, zero: Tensor, config: ModelConfig, size: tuple[int, int], features: bool) -> DetectionOutput:
    """See `TaskNetwork`."""
    count = len(_anchors(config, size, "cpu"))
    feature = zero.expand(0, count // PER_CELL, config.adapter or config.width) if features else None
    return DetectionOutput(zero.expand(0, count, head.classes), zero.expand(0, count, 4), feature)


def loss(output: DetectionOutput, truth: UnitBoxes[Tensor], config: Config, size: tuple[int, int]) -> dict[str, Term]:
    """See `TaskNetwork`."""
    return detection_losses(output, truth, _anchors(config.model, size, output.cls.device), config.loss)


def distil(
    student: DetectionOutput,
    teacher: DetectionOutput | None,
    rows: np.ndarray,
    truth: Some[UnitBoxes[Tensor]],
    config: Config,
    size: tuple[int, int],
) -> dict[str, Term]:
    """See `TaskNetwork`."""
    if teacher is None:
        teacher = mapped(student, torch.detach)
    for name, expected, found in zip(DetectionOutput._fields, student, teacher, strict=True):
        if expected is not None and (found is None or found.shape != expected.shape):
            shape = None if found is None else tuple(found.shape)
            source = config.teachers.det.checkpoint if config.teachers.det else ""
            raise UserError(
                f"teachers.det.checkpoint {source}: its answer '{name}' has the shape {shape}, the student needs "
                f"{tuple(expected.shape)}"
            )
    foreground = None
    if config.distill.det.defeat:
        cells_of = _anchors(config.model, size, student.cls.device)
        foreground = torch.full((len(rows), len(cells_of) // PER_CELL), -1, device=student.cls.device)
        annotated = np.isin(rows, truth.rows)
        boxes = truth.at(rows[annotated])
        foreground[torch.from_numpy(annotated)] = foreground_cells(boxes.boxes, boxes.labels, cells_of)
    return detection_distillation(student, teacher, foreground, config.distill.det)


def answer(output: DetectionOutput, size: tuple[int, int]) -> DetectionOutput:
    """See `TaskNetwork`."""
    return mapped(output, Tensor.half)


def pack(answer: DetectionOutput) -> list[bytes]:
    """See `TaskNetwork`. Features are left out."""
    return codec.pack(answer.cls, answer.box)


def unpack(packed: Sequence[bytes], device: torch.device) -> DetectionOutput:
    """See `TaskNetwork`."""
    return DetectionOutput(*codec.unpack(packed, device))


def check_packed(packed: bytes, classes: int, size: int) -> None:
    """See `TaskNetwork`."""
    codec.check(packed, {(count_anchors(size, levels), classes) for levels in (4, 5)})


def _anchors(config: ModelConfig, size: tuple[int, int], device: torch.device | str) -> Tensor:
    return anchors(*size, config.anchor_base, device, config.pyramid_levels)
