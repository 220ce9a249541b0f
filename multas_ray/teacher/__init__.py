"""Frozen teachers and how their soft targets reach a worker.

A kind of teacher is a module with `describe`, called in the driver before anything starts, and `load`, called where the
teacher answers. `LOADERS` is the only registry.
"""

from typing import Protocol

from multas_ray.config import Task
from multas_ray.teacher import own
from multas_ray.teacher.teacher import Description, StudentTerms, Teacher, TeacherSpec


class Loader(Protocol):
    """A kind of teacher."""

    def describe(self, source: str, task: Task, terms: StudentTerms) -> Description:
        """Find a teacher and see that it fits its student.

        Raises:
            UserError: there is no such teacher, or it does not fit.
        """

    def load(self, spec: TeacherSpec, device: str) -> Teacher:
        """The teacher, on a device.

        Raises:
            UserError: it cannot be loaded, or is not what was described.
        """


LOADERS: dict[str, Loader] = {"": own}
"""By the scheme that a source begins with, `hf` of `hf:owner/name`, say; without a known one it is a folder or URI of
our own checkpoints."""


def loader_of(source: str) -> Loader:
    """The loader of a teacher."""
    return LOADERS.get(source.partition(":")[0] if ":" in source else "", LOADERS[""])
