"""Detection in the network: head, losses, and answers of a teacher."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from multas_ray.config import Config, ModelConfig
from multas_ray.data.batch import Compared, Some, mapped
from multas_ray.errors import UserError
from multas_ray.model.paper import paper_norm
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.detection import packed as codec
from multas_ray.tasks.detection.anchored import anchored
from multas_ray.tasks.detection.anchors import PER_CELL, anchors, count_anchors, decode
from multas_ray.tasks.detection.distillation import detection_distillation, foreground_cells
from multas_ray.tasks.detection.found import Found, translated
from multas_ray.tasks.detection.head import DetectionHead, LevelwiseDetectionHead, cells
from multas_ray.tasks.detection.loss import detection_losses
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.tasks.packed import TINY
from multas_ray.tasks.terms import SURELY_ABSENT, Term

Head = DetectionHead | LevelwiseDetectionHead


def head(config: ModelConfig, classes: int) -> Head:
    """Build the detection head of the configured preset, for this number of classes."""
    if config.preset == "paper":
        return LevelwiseDetectionHead(config.width, classes, config.pyramid_levels, paper_norm(config.norm))
    return DetectionHead(config.width, classes)


def run(head: Head, pyramid: Sequence[Tensor], adapters: nn.ModuleList | None, features: bool) -> DetectionOutput:
    """Run the head on maps (n, width, h, w), fine to coarse.

    Features are the pyramid's cells, (n, A/6, F) in the order of the anchors, through the adapters if there are any.
    """
    cls, box = head(pyramid)
    feature = None
    if features:
        if adapters is not None:
            pyramid = [adapter(level) for adapter, level in zip(adapters, pyramid, strict=True)]
        feature = at_least_float32(cells(pyramid))
    return DetectionOutput(at_least_float32(cls), at_least_float32(box), feature)


def nothing(head: Head, zero: Tensor, config: ModelConfig, size: tuple[int, int], features: bool) -> DetectionOutput:
    """Return the output for zero rows: empty tensors that are connected to `zero` in the graph."""
    count = len(_anchors(config, size, "cpu"))
    feature = zero.expand(0, count // PER_CELL, config.adapter or config.width) if features else None
    return DetectionOutput(zero.expand(0, count, head.classes), zero.expand(0, count, 4), feature)


def loss(
    output: DetectionOutput,
    truth: UnitBoxes[Tensor],
    unlabelled: Tensor | None,
    config: Config,
    size: tuple[int, int],
) -> dict[str, Term]:
    """Compute the losses of detection for the k rows of `truth`, without unlabelled classes (k, C); k may be 0."""
    return detection_losses(output, truth, _anchors(config.model, size, output.cls.device), config.loss, unlabelled)


def distil(
    student: DetectionOutput,
    teacher: DetectionOutput | Found | None,
    chosen: Some[Compared],
    truth: Some[UnitBoxes[Tensor]],
    config: Config,
    size: tuple[int, int],
) -> dict[str, Term]:
    """Compute the configured distillation losses of detection for n rows of a batch.

    Args:
        student: output of the student's head.
        teacher: answer of the teacher, or the objects that it found; None if n is 0.
        chosen: the rows' numbers in the batch, and the classes that are compared.
        truth: the batch's boxes, which DeFeat compares features by.
        config: configuration of the run.
        size: height and width of the network's input in pixels.

    Raises:
        UserError: the teacher's answer has another shape than the student's output.
    """
    if teacher is None:
        teacher = mapped(student, torch.detach)
    if isinstance(teacher, Found):
        teacher = fit(teacher, config.model, size)
    for name, expected, actual in zip(DetectionOutput._fields, student, teacher, strict=True):
        if expected is not None and (actual is None or actual.shape != expected.shape):
            shape = None if actual is None else tuple(actual.shape)
            raise UserError(
                f"{config.teachers.named('det')}: its answer '{name}' has the shape {shape}, the student needs "
                f"{tuple(expected.shape)}"
            )
    rows, foreground = chosen.rows, None
    if config.distill.det.defeat:
        grid = _anchors(config.model, size, student.cls.device)
        foreground = torch.full((len(rows), len(grid) // PER_CELL), -1, device=student.cls.device)
        annotated = np.isin(rows, truth.rows)
        boxes = truth.at(rows[annotated])
        foreground[torch.from_numpy(annotated)] = foreground_cells(boxes.boxes, boxes.labels, grid)
    marks = chosen.values.classes
    classes = None if marks.all() else torch.tensor(marks, device=student.cls.device)
    return detection_distillation(student, teacher, foreground, config.distill.det, classes)


def answer(output: DetectionOutput, size: tuple[int, int]) -> DetectionOutput:
    """Return a teacher's whole output, in float16."""
    return mapped(output, Tensor.half)


def spread(answer: DetectionOutput, columns: Sequence[int | None], count: int) -> DetectionOutput:
    """Place the classes of a teacher in the `count` columns of its student; of several in one, the most probable."""
    cls = answer.cls.new_full((*answer.cls.shape[:2], count), SURELY_ABSENT)
    for column in {column for column in columns if column is not None}:
        own = [place for place, each in enumerate(columns) if each == column]
        cls[..., column] = answer.cls[..., own].amax(dim=-1)
    return answer._replace(cls=cls)


def soften(answer: DetectionOutput, temperature: float) -> DetectionOutput:
    """Divide the logits by a temperature."""
    return answer._replace(cls=answer.cls / temperature)


def generalize(output: DetectionOutput, config: ModelConfig, size: tuple[int, int]) -> Found:
    """Return the boxes of all anchors as objects, which belong to no anchors."""
    return Found(decode(output.box.float(), _anchors(config, size, output.box.device)), output.cls.float().sigmoid())


def translate(
    found: Found, columns: Sequence[int | None], classes: Sequence[str], temperature: float, exclusive: bool
) -> Found:
    """Bring objects to the classes of a student, and keep the surest hundred of each image."""
    return translated(found, columns, len(classes), temperature, exclusive)


def fit(found: Found, config: ModelConfig, size: tuple[int, int]) -> DetectionOutput:
    """Give every anchor of a student the box and the class probabilities of its object, in float16."""
    grid = _anchors(config, size, found.boxes.device)
    return mapped(anchored(found.boxes, found.probabilities, grid), Tensor.half)


def merge(answers: Sequence[DetectionOutput], known: np.ndarray) -> DetectionOutput:
    """Merge answers of several teachers: each class is the mean of those that know it.

    The box of an anchor is the mean of theirs, each weighted by its confidence in the classes that it knows.
    """
    marks = torch.tensor(known, device=answers[0].cls.device)
    p = torch.stack([each.cls.float().sigmoid() for each in answers]) * marks[:, None, None]
    confidence = p.amax(dim=-1, keepdim=True) + TINY
    boxes = torch.stack([each.box.float() for each in answers])
    mean = p.sum(dim=0) / marks.sum(dim=0).clamp(min=1)
    cls = mean.clamp(TINY, 1 - TINY).logit()
    return DetectionOutput(cls.half(), ((confidence * boxes).sum(dim=0) / confidence.sum(dim=0)).half())


def pack(answer: DetectionOutput) -> list[bytes]:
    """Pack logits and box codes of n images into n byte strings of some kilobytes; features are left out."""
    return codec.pack(answer.cls, answer.box)


def unpack(packed: Sequence[bytes], device: torch.device) -> DetectionOutput:
    """Invert `pack`, up to the packing's error, in float32."""
    return DetectionOutput(*codec.unpack(packed, device))


def check_packed(packed: bytes, classes: int, size: int) -> None:
    """Check a packed answer that was read from a file, for a square image of `size` pixels and either preset's levels.

    Raises:
        ValueError: the bytes are no packed answer, or one for another number of classes or size.
    """
    codec.check(packed, {(count_anchors(size, levels), classes) for levels in (4, 5)})


def _anchors(config: ModelConfig, size: tuple[int, int], device: torch.device | str) -> Tensor:
    return anchors(*size, config.anchor_base, device, config.pyramid_levels)
