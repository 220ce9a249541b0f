"""Contract of a teacher: a batch of images in, an answer in its student's terms out, in every placement."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from multas_ray.config import Task, TeacherConfig
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
    """Packed answer of each image, see `TaskNetwork.pack`, or for original images `TaskOriginal.pack`; None in a dense
    answer."""
    general: Any = None
    """What was found in original images, moved with them, as `TaskOriginal.stack` returns it, or its answer in the form
    of an output; None in any other."""


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
    original: bool = False
    """Whether answers are for original images, and packed by `TaskOriginal.pack`: in the student's classes, but in no
    form of its output."""


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
    size: int | None = None
    """Side in pixels of the squares that it works best on; None for any."""
    every_anchor: bool = True
    """Whether its answer tells something of every anchor of the student: not that of a model that finds boxes."""


@dataclass(frozen=True)
class TeacherSpec:
    """Teacher and the form of its answers. Two with the same description, terms and settings answer alike."""

    task: Task
    description: Description
    terms: StudentTerms
    settings: TeacherConfig = field(default_factory=lambda: TeacherConfig(source=""))

    @property
    def members(self) -> tuple["TeacherSpec", ...]:
        """Teachers that answer together: this one alone."""
        return (self,)

    @property
    def digest(self) -> str:
        """Digest of everything that its answers depend on: its weights, and settings that are not their defaults."""
        settings = self.settings.model_dump(mode="json", exclude={"source", "batch_size"}, exclude_defaults=True)
        if not settings:
            return self.description.digest
        return digest_of(self.description.digest, json.dumps(settings, sort_keys=True))

    @property
    def known(self) -> np.ndarray:
        """(C,) bool: the classes of the student that the teacher knows."""
        every = self.terms.classes
        return np.isin(every, every if self.description.classes is None else self.description.classes)

    @property
    def place(self) -> str:
        """Name of the teacher in messages."""
        return f"teachers.{self.task}.source {self.description.source}"

    def load(self, device: str) -> Teacher:
        """Load the teacher onto a PyTorch device.

        Raises:
            UserError: it cannot be loaded, or does not fit its student.
        """
        # Imported here: the loaders import this module.
        from multas_ray.teacher import loader_of

        return loader_of(self.description.source).load(self, device)


def digest_of(*parts: str | bytes) -> str:
    """Compute the digest of some texts or bytes, one after another: 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def digests(images: np.ndarray) -> np.ndarray:
    """Compute a digest of each image's pixels, by which a target is known to be that image's.

    Args:
        images: (n, 3, size, size) uint8.

    Returns:
        (n,) uint64.
    """
    hashes = [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(hashes), np.uint64)


class Answering(Protocol):
    """What an answer is made for: `TeacherSpec`, or `EnsembleSpec`."""

    @property
    def task(self) -> Task:
        """Task that is answered for."""

    @property
    def terms(self) -> StudentTerms:
        """Form of the answer."""

    @property
    def place(self) -> str:
        """Name of the teacher in messages."""


def to_answer(spec: Answering, images: np.ndarray, output: Any) -> Answer:
    """Convert a teacher's output to the form in which it is sent and stored.

    Args:
        spec: teacher and form of its answers.
        images: (n, 3, size, size) uint8.
        output: output for the images in the student's terms, as `TaskNetwork.answer` returns it; for original images
            what was found in them.

    Raises:
        UserError: the output is not finite.
    """
    parts = PARTS[spec.task]
    check_finite(spec, output)
    if spec.terms.original:
        return Answer(digests(images), packed=tuple(parts.original.pack(output)))
    if spec.terms.packed:
        return Answer(digests(images), packed=tuple(parts.network.pack(output)))
    return Answer(digests(images), dense=mapped(output, lambda value: value.cpu().numpy()))


def check_finite(spec: Answering, output: Any) -> None:
    """Raise a UserError, which names the teacher, if a value of an output is NaN or infinite."""
    if not all(bool(value.isfinite().all()) for value in arrays_of(output)):
        raise UserError(f"{spec.place}: it answers with NaN or infinite values")


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
    values = answer.dense if answer.general is None else answer.general
    return mapped(values, lambda value: torch.tensor(value, device=device).float())
