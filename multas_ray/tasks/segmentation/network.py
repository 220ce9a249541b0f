"""Segmentation in the network: its head, its losses, and a teacher's answer. Its output is logits (n, C, h, w)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multas_ray.config import Config, ModelConfig
from multas_ray.data.batch import Some
from multas_ray.errors import UserError
from multas_ray.model.paper import paper_norm
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.segmentation import packed as codec
from multas_ray.tasks.segmentation.distillation import segmentation_distillation
from multas_ray.tasks.segmentation.head import FullResolutionSegmentationHead, SegmentationHead
from multas_ray.tasks.segmentation.loss import segmentation_loss
from multas_ray.tasks.terms import Term

Head = SegmentationHead | FullResolutionSegmentationHead
STRIDE = 4
"""Of a teacher's answer: finer ones are averaged."""


def head(config: ModelConfig, classes: int) -> Head:
    """See `TaskNetwork`."""
    if config.preset == "paper":
        return FullResolutionSegmentationHead(config.width, classes, config.pyramid_levels, paper_norm(config.norm))
    return SegmentationHead(config.width, classes)


def run(head: Head, pyramid: Sequence[Tensor], adapters: nn.ModuleList | None, features: bool) -> Tensor:
    """See `TaskNetwork`. Its features are never compared."""
    return at_least_float32(head(pyramid))


def nothing(head: Head, zero: Tensor, config: ModelConfig, size: tuple[int, int], features: bool) -> Tensor:
    """See `TaskNetwork`."""
    return zero.expand(0, head.classes, size[0] // head.stride, size[1] // head.stride)


def loss(output: Tensor, truth: Tensor, config: Config, size: tuple[int, int]) -> dict[str, Term]:
    """See `TaskNetwork`."""
    return segmentation_loss(output, truth)


def distil(
    student: Tensor,
    teacher: Tensor | None,
    rows: np.ndarray,
    truth: Some[Tensor],
    config: Config,
    size: tuple[int, int],
) -> dict[str, Term]:
    """See `TaskNetwork`."""
    if teacher is None:
        return segmentation_distillation(student, student.detach(), config.distill.seg)
    expected = (*student.shape[:2], *_answer_size(size))
    if teacher.shape != expected:
        source = config.teachers.seg.checkpoint if config.teachers.seg else ""
        raise UserError(
            f"teachers.seg.checkpoint {source}: its answer 'seg' has the shape {tuple(teacher.shape)}, the student "
            f"needs {expected}"
        )
    return segmentation_distillation(student, teacher, config.distill.seg)


def answer(output: Tensor, size: tuple[int, int]) -> Tensor:
    """See `TaskNetwork`."""
    return F.adaptive_avg_pool2d(output, _answer_size(size)).half()


def pack(answer: Tensor) -> list[bytes]:
    """See `TaskNetwork`."""
    return codec.pack(answer)


def unpack(packed: Sequence[bytes], device: torch.device) -> Tensor:
    """See `TaskNetwork`: logarithms of probabilities."""
    return codec.unpack(packed, device)


def check_packed(packed: bytes, classes: int, size: int) -> None:
    """See `TaskNetwork`."""
    codec.check(packed, (classes, *_answer_size((size, size))))


def _answer_size(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // STRIDE, size[1] // STRIDE
