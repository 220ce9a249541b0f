"""Contract of a teacher: a batch of images in, an answer in its student's terms out, in every placement."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from multas_ray.config import Task
from multas_ray.data.batch import mapped
from multas_ray.errors import UserError
from multas_ray.tasks import PARTS


@dataclass(frozen=True)
class Answer:
    """Soft targets of a teacher for n images, in their order: dense or packed."""

    digests: np.ndarray
    """(n,) uint64: `digests` of the images."""
    dense: Any = None
    """Output of the task's head as float16 arrays, see `TaskNetwork.answer`; None in a packed answer."""
    packed: tuple[bytes, ...] | None = None
    """Packed answer of each image, see `TaskNetwork.pack`; None in a dense answer."""


SoftTargets = Mapping[Task, Answer]
"""Answers for the rows of a batch that each task is distilled on; a task without rows has none."""
Teacher = Callable[[np.ndarray], Answer]
"""Function that answers for images (n, 3, size, size) uint8, n >= 1."""


@dataclass(frozen=True)
class StudentTerms:
    """Form of the answers that a student needs."""

    classes: tuple[str, ...]
    """Classes of the student, in its order."""
    anchor_base: float
    """Side of the student's smallest anchors in pixels, see `ModelConfig`."""
    levels: int
    """Number of levels of the student's pyramid."""
    precision: str = "float32"
    """Type of the teacher's autocast."""
    features: bool = False
    """Whether the answer has features too."""
    packed: bool = False
    """Whether answers are packed."""


@dataclass(frozen=True)
class Description:
    """Teacher, as its loader describes it before anything starts."""

    source: str
    """Name that leads to the teacher from any process, in any working folder."""
    digest: str
    """Digest of its weights."""
    feature_width: int | None = None
    """Number of channels of its features; None if it has none for a student to be compared with."""
    classes: tuple[str, ...] | None = None
    """Classes of the student that it knows; None for all. Its answer for the others means nothing."""


@dataclass(frozen=True)
class TeacherSpec:
    """Teacher and the form of its answers. Two with the same description and terms answer alike."""

    task: Task
    description: Description
    terms: StudentTerms

    @property
    def digest(self) -> str:
        """Digest of the teacher's weights."""
        return self.description.digest

    @property
    def known(self) -> np.ndarray:
        """(C,) bool: the classes of the student that the teacher knows."""
        every = self.terms.classes
        return np.isin(every, every if self.description.classes is None else self.description.classes)

    def load(self, device: str) -> Teacher:
        """Load the teacher onto a PyTorch device.

        Raises:
            UserError: it cannot be loaded, or does not fit its student.
        """
        # Imported here: the loaders import this module.
        from multas_ray.teacher import loader_of

        return loader_of(self.description.source).load(self, device)


def digests(images: np.ndarray) -> np.ndarray:
    """Compute a digest of each image's pixels, by which a target is known to be that image's.

    Args:
        images: (n, 3, size, size) uint8.

    Returns:
        (n,) uint64.
    """
    hashes = [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(hashes), np.uint64)


def to_answer(spec: TeacherSpec, images: np.ndarray, output: Any) -> Answer:
    """Convert a teacher's output to the form in which it is sent and stored.

    Args:
        spec: teacher and form of its answers.
        images: (n, 3, size, size) uint8.
        output: output for the images in the student's terms, as `TaskNetwork.answer` returns it.

    Raises:
        UserError: the output is not finite.
    """
    network, source = PARTS[spec.task].network, spec.description.source
    if not all(bool(value.isfinite().all()) for value in arrays_of(output)):
        raise UserError(f"teachers.{spec.task}.checkpoint {source}: it answers with NaN or infinite values")
    if spec.terms.packed:
        return Answer(digests(images), packed=tuple(network.pack(output)))
    return Answer(digests(images), dense=mapped(output, lambda value: value.cpu().numpy()))


def arrays_of(output: Any) -> list[Any]:
    """List the tensors, or arrays, of an output or answer."""
    values = output if isinstance(output, tuple) else (output,)
    return [value for value in values if value is not None]


def to_tensors(soft: SoftTargets, device: torch.device) -> dict[Task, Any]:
    """Convert answers to the form that the losses take: float32 tensors on a device, by task."""
    return {task: _to_tensors(task, answer, device) for task, answer in soft.items()}


def _to_tensors(task: Task, answer: Answer, device: torch.device) -> Any:
    if answer.packed is not None:
        return PARTS[task].network.unpack(answer.packed, device)
    return mapped(answer.dense, lambda value: torch.tensor(value, device=device).float())
