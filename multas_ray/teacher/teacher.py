"""The contract of a teacher: a batch of images in, an answer in its students' terms out, wherever it is placed."""

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
    """A teacher's soft targets for n images, in their order: dense or packed."""

    digests: np.ndarray
    """(n,) uint64, the `digests` of the images."""
    dense: Any = None
    """The answer of its task (see `TaskNetwork.answer`) as float16 arrays."""
    packed: tuple[bytes, ...] | None = None
    """One for each image, see `TaskNetwork.pack`."""


SoftTargets = Mapping[Task, Answer]
"""Answers for the rows of a batch that each task is distilled on; a task without rows has none."""
Teacher = Callable[[np.ndarray], Answer]
"""Answers for images (n, 3, size, size) uint8, n >= 1."""


@dataclass(frozen=True)
class StudentTerms:
    """What a student expects of a teacher's answer."""

    classes: tuple[str, ...]
    """What the student tells apart."""
    anchor_base: float
    """See `ModelConfig`."""
    levels: int
    """Of the student's pyramid."""
    precision: str = "float32"
    """Type of the teacher's autocast."""
    features: bool = False
    """Whether features are compared, too."""
    packed: bool = False
    """Whether answers are packed."""


@dataclass(frozen=True)
class Description:
    """A teacher, as its loader describes it before anything starts."""

    source: str
    """What names it from any process, started in any folder."""
    digest: str
    """Of its weights."""
    feature_width: int | None = None
    """Channels of its features, where it has any that a student can be compared with."""


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher and how it answers: two of the same description and terms answer alike."""

    task: Task
    description: Description
    terms: StudentTerms

    @property
    def digest(self) -> str:
        """Of the teacher's weights."""
        return self.description.digest

    def load(self, device: str) -> Teacher:
        """The teacher itself.

        Raises:
            UserError: it cannot be loaded, or does not fit its student.
        """
        # Loaders know this module.
        from multas_ray.teacher import loader_of

        return loader_of(self.description.source).load(self, device)


def digests(images: np.ndarray) -> np.ndarray:
    """(n,) uint64: a digest of each image's pixels, by which a target is known to be that image's."""
    each = [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(each), np.uint64)


def to_answer(spec: TeacherSpec, images: np.ndarray, output: Any) -> Answer:
    """A teacher's output for images (n, 3, size, size) uint8 as it travels.

    Args:
        output: in the student's terms, as `TaskNetwork.answer` returns it.

    Raises:
        UserError: it is not finite.
    """
    network, source = PARTS[spec.task].network, spec.description.source
    if not all(bool(value.isfinite().all()) for value in arrays_of(output)):
        raise UserError(f"teachers.{spec.task}.checkpoint {source}: it answers with NaN or infinite values")
    if spec.terms.packed:
        return Answer(digests(images), packed=tuple(network.pack(output)))
    return Answer(digests(images), dense=mapped(output, lambda value: value.cpu().numpy()))


def arrays_of(output: Any) -> list[Any]:
    """The tensors, or arrays, of an output or answer."""
    values = output if isinstance(output, tuple) else (output,)
    return [value for value in values if value is not None]


def to_tensors(soft: SoftTargets, device: torch.device) -> dict[Task, Any]:
    """Answers as the losses take them: float32, of the tasks that are there."""
    return {task: _to_tensors(task, answer, device) for task, answer in soft.items()}


def _to_tensors(task: Task, answer: Answer, device: torch.device) -> Any:
    if answer.packed is not None:
        return PARTS[task].network.unpack(answer.packed, device)
    return mapped(answer.dense, lambda value: torch.tensor(value, device=device).float())
