"""Several teachers of one task that answer as one: each class is taught by those that know it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from multas_ray.config import Task
from multas_ray.data.batch import mapped
from multas_ray.errors import UserError
from multas_ray.tasks import PARTS
from multas_ray.tasks.segmentation.rows import BACKGROUND
from multas_ray.teacher.teacher import Answer, StudentTerms, Teacher, TeacherSpec, digest_of, to_answer


@dataclass(frozen=True)
class EnsembleSpec:
    """Teachers of one task, and the form of their answer. Two with the same members and terms answer alike."""

    task: Task
    members: tuple[TeacherSpec, ...]
    terms: StudentTerms

    @property
    def digest(self) -> str:
        """Digest of everything that their answer depends on."""
        return digest_of(*(f"{member.digest} {member.terms.precision}" for member in self.members))

    @property
    def known(self) -> np.ndarray:
        """(C,) bool: the classes of the student that some member knows."""
        known: np.ndarray = np.logical_or.reduce([member.known for member in self.members])
        return known

    @property
    def place(self) -> str:
        """Name of the teachers in messages."""
        return f"teachers.{self.task}.source {', '.join(member.description.source for member in self.members)}"

    def load(self, device: str) -> Teacher:
        """Load all members onto a PyTorch device.

        Raises:
            UserError: one cannot be loaded, or does not fit its student.
        """
        return Ensemble(self, [member.load(device) for member in self.members], device)


TaskTeacher = TeacherSpec | EnsembleSpec
"""Teacher of a task: one, or several that answer as one."""


def joint_spec(members: Sequence[TeacherSpec]) -> TaskTeacher:
    """Return the teacher of a task that some teachers are together; of one, that one.

    Raises:
        UserError: they cannot be weighed against each other, or a student compares features.
    """
    [first, *others] = members
    if not others:
        return first
    task, terms = first.task, first.terms
    # Each pixel is of some class: without a background, a teacher cannot say that it knows none of them.
    if task == "seg" and terms.classes[0] != BACKGROUND:
        for other in others:
            if not np.array_equal(other.known, first.known):
                raise UserError(
                    f"{other.place}: knows other classes than {first.description.source}, and the run has no class "
                    f"'{BACKGROUND}', by which they would say so"
                )
    whole = tuple(replace(member, terms=replace(member.terms, packed=False)) for member in members)
    return EnsembleSpec(task, whole, terms)


class Ensemble:
    """Loaded teachers that answer as one."""

    def __init__(self, spec: EnsembleSpec, members: Sequence[Any], device: str) -> None:
        """Take the loaded members, in the order of the spec; for original images each is a `Stranger`."""
        self.spec = spec
        self.members = members
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Answer:
        """Answer for images (n, 3, size, size) uint8.

        Raises:
            UserError: an answer has values that are not finite.
        """
        spec, parts = self.spec, PARTS[self.spec.task]
        known = np.stack([member.known for member in spec.members])
        if spec.terms.original:
            batch = self._tensor(images)
            classes = spec.terms.classes
            found = parts.original.unite([member.find(batch) for member in self.members], known)
            united = parts.network.translate(found, range(len(classes)), classes, 1.0, False)
            return to_answer(spec, images, united)
        answers = [mapped(member(images).dense, self._tensor) for member in self.members]
        return to_answer(spec, images, parts.network.merge(answers, known))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, device=self.device)
