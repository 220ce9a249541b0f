"""Segmentation in the network: head, losses, and answers of a teacher. The head's output is logits (n, C, h, w)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multas_ray.config import Config, DistilledOn, ModelConfig
from multas_ray.data.batch import Compared, Some
from multas_ray.errors import UserError
from multas_ray.model.paper import paper_norm
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.packed import TINY
from multas_ray.tasks.segmentation import packed as codec
from multas_ray.tasks.segmentation.distillation import Outcomes, segmentation_distillation
from multas_ray.tasks.segmentation.head import FullResolutionSegmentationHead, SegmentationHead
from multas_ray.tasks.segmentation.loss import segmentation_loss
from multas_ray.tasks.segmentation.original import STRIDE, unite
from multas_ray.tasks.segmentation.rows import BACKGROUND
from multas_ray.tasks.terms import SURELY_ABSENT, Term

Head = SegmentationHead | FullResolutionSegmentationHead
NOTHING = 1e-3
"""Score of the background that is added to a teacher's scores, which may all be 0."""


def head(config: ModelConfig, classes: int) -> Head:
    """Build the segmentation head of the configured preset, for this number of classes."""
    if config.preset == "paper":
        return FullResolutionSegmentationHead(config.width, classes, config.pyramid_levels, paper_norm(config.norm))
    return SegmentationHead(config.width, classes)


def run(head: Head, pyramid: Sequence[Tensor], adapters: nn.ModuleList | None, features: bool) -> Tensor:
    """Run the head on maps (n, width, h, w), fine to coarse: logits of stride 4 (1 in preset `paper`), no features."""
    return at_least_float32(head(pyramid))


def nothing(head: Head, zero: Tensor, config: ModelConfig, size: tuple[int, int], features: bool) -> Tensor:
    """Return the output for zero rows: empty logits that are connected to `zero` in the graph."""
    return zero.expand(0, head.classes, size[0] // head.stride, size[1] // head.stride)


def loss(
    output: Tensor, truth: Tensor, unlabelled: Tensor | None, config: Config, size: tuple[int, int]
) -> dict[str, Term]:
    """Compute the loss of segmentation for k rows with masks (k, H, W) uint8, of which classes (k, C) are unlabelled.

    k may be 0.
    """
    return segmentation_loss(output, truth, unlabelled)


def distil(
    student: Tensor,
    teacher: Tensor | None,
    chosen: Some[Compared],
    truth: Some[Tensor],
    config: Config,
    size: tuple[int, int],
) -> dict[str, Term]:
    """Compute the configured distillation losses of segmentation for n rows of a batch.

    Args:
        student: logits (n, C, h, w) of the student.
        teacher: logits (n, C, H/4, W/4) of the teacher; None if n is 0.
        chosen: the rows' numbers in the batch, and the classes that are compared.
        truth: the batch's masks; of an annotated row only pixels of background can be of a missing class.
        config: configuration of the run.
        size: height H and width W of the network's input in pixels.

    Raises:
        UserError: the teacher's answer has another shape.
    """
    if teacher is None:
        return segmentation_distillation(student, student.detach(), config.distill.seg)
    expected = (*student.shape[:2], *_answer_size(size))
    if teacher.shape != expected:
        raise UserError(
            f"{config.teachers.named('seg')}: its answer has the shape {tuple(teacher.shape)}, the student needs "
            f"{expected}"
        )
    compared = _compared(chosen, truth, config.distill.seg.on, student.device, _answer_size(size))
    return segmentation_distillation(student, teacher, config.distill.seg, compared)


def _compared(
    chosen: Some[Compared], truth: Some[Tensor], on: DistilledOn, device: torch.device, size: tuple[int, int]
) -> Outcomes | None:
    """Return what of an answer of `size` pixels is compared in each row; None where it is all of every row.

    What annotation has of a row are the class distributions with its unlabelled classes merged into the background,
    at all pixels. What it lacks is how the background's probability is shared among these classes and the background
    itself, at pixels of background. Both divergences together are the whole one's.
    """
    classes, merged = (torch.tensor(marks, device=device) for marks in chosen.values)
    annotated = torch.tensor(np.isin(chosen.rows, truth.rows) & (on == "missing"), device=device)
    if classes.all() and not annotated.any():
        return None
    share = torch.ones(len(classes), *size, device=device)
    if annotated.any():
        masks = truth.at(chosen.rows[annotated.cpu().numpy()])
        share[annotated] = F.adaptive_avg_pool2d((masks == 0).float(), size)
    return Outcomes(classes, classes | merged, merged, share)


def spread(answer: Tensor, columns: Sequence[int | None], count: int) -> Tensor:
    """Place the classes of a teacher in the `count` columns of its student; probabilities in one column add up."""
    logits = answer.new_full((answer.shape[0], count, *answer.shape[2:]), SURELY_ABSENT)
    for column in {column for column in columns if column is not None}:
        own = [place for place, each in enumerate(columns) if each == column]
        logits[:, column] = answer[:, own].float().logsumexp(dim=1)
    return logits


def soften(answer: Tensor, temperature: float) -> Tensor:
    """Divide logits by a temperature."""
    return answer / temperature


def generalize(output: Tensor, config: ModelConfig, size: tuple[int, int]) -> Tensor:
    """Return the probabilities of the classes of each pixel."""
    return output.float().softmax(dim=1)


def translate(
    scores: Tensor, columns: Sequence[int | None], classes: Sequence[str], temperature: float, exclusive: bool
) -> Tensor:
    """Bring scores to the classes of a student, as distributions over those that some column is of.

    Scores of a mask model do not add up to one: they are divided by their sum. Where they are all small, nothing was
    found: such a pixel is of the background, if the student has one and some column is of it, else of every class
    alike.

    Args:
        scores: (n, C', h, w), 0 or larger.
        columns: column of each of the C' classes; None for one that is left out. Scores in one column add up.
        classes: names of the student's C classes.
        temperature: divisor of the logarithms of the probabilities, of the student's classes.
        exclusive: without meaning, since pixels are of one class.

    Returns:
        (n, C, h, w) probabilities.
    """
    scores = scores.float()
    own = scores.new_zeros(scores.shape[0], len(classes), *scores.shape[2:])
    for place, column in enumerate(columns):
        if column is not None:
            own[:, column] += scores[:, place]
    known = sorted({column for column in columns if column is not None})
    silent = [0] if classes[0] == BACKGROUND and 0 in known else known
    own[:, silent] += NOTHING / len(silent)
    own = own / own.sum(dim=1, keepdim=True)
    if temperature != 1:
        own = own.pow(1 / temperature)
        own = own / own.sum(dim=1, keepdim=True)
    return own


def fit(probabilities: Tensor, config: ModelConfig, size: tuple[int, int]) -> Tensor:
    """Bring probabilities (n, C, h, w) of any resolution to logits of stride 4 of a student's input, in float16."""
    sides = _answer_size(size)
    if probabilities.shape[2:] != sides:
        probabilities = F.interpolate(probabilities, sides, mode="bilinear", antialias=True)
    return probabilities.clamp(min=TINY).log().half()


def merge(answers: Sequence[Tensor], known: np.ndarray) -> Tensor:
    """Merge answers of several teachers: each class is the mean of those that know it.

    The background has what is left, where there is one. A pixel that different teachers claim for different classes is
    shared among these in proportion.
    """
    united = unite([each.float().softmax(dim=1) for each in answers], known)
    return united.clamp(min=TINY).log().half()


def answer(output: Tensor, size: tuple[int, int]) -> Tensor:
    """Average a teacher's logits to stride 4, in float16."""
    return F.adaptive_avg_pool2d(output, _answer_size(size)).half()


def pack(answer: Tensor) -> list[bytes]:
    """Pack logits of n images into n byte strings of some kilobytes."""
    return codec.pack(answer)


def unpack(packed: Sequence[bytes], device: torch.device) -> Tensor:
    """Unpack an answer as logarithms of probabilities (n, C, h, w), float32."""
    return codec.unpack(packed, device)


def check_packed(packed: bytes, classes: int, size: int) -> None:
    """Check a packed answer that was read from a file, for a square image of `size` pixels.

    Raises:
        ValueError: the bytes are no packed answer, or one for another number of classes or size.
    """
    codec.check(packed, (classes, *_answer_size((size, size))))


def _answer_size(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // STRIDE, size[1] // STRIDE
