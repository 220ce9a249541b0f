"""Teachers, and the ways of their soft targets to a training worker.

A kind of teacher is a module with `describe`, called in the driver before anything starts, and `load`, called where the
teacher answers. `LOADERS` is the only registry.
"""

from typing import Protocol

from multas_ray.config import FOREIGN, Task, TeacherConfig
from multas_ray.errors import UserError, quoted
from multas_ray.teacher import own
from multas_ray.teacher.strangers import StrangerLoader
from multas_ray.teacher.teacher import Description, StudentTerms, Teacher, TeacherSpec


class Loader(Protocol):
    """Module of one kind of teacher."""

    def describe(self, settings: TeacherConfig, task: Task, terms: StudentTerms) -> Description:
        """Find a teacher, and check that it fits its student.

        Args:
            settings: settings of the teacher, with its source, such as a run folder.
            task: task that it is to answer for.
            terms: form of the answers that its student needs.

        Raises:
            UserError: there is no such teacher, or it does not fit.
        """

    def load(self, spec: TeacherSpec, device: str) -> Teacher:
        """Load a teacher onto a PyTorch device.

        Raises:
            UserError: it cannot be loaded, or differs from its description.
        """


LOADERS: dict[str, Loader] = {
    "": own,
    "hf": StrangerLoader("huggingface"),
    "torchvision": StrangerLoader("torchvision"),
    "onnx": StrangerLoader("onnx"),
    "python": StrangerLoader("python"),
}
"""Loaders by the scheme of a source, such as `hf` in `hf:owner/name`. A source without a scheme is a folder or URI of
this project's own checkpoints, the loader under the empty name."""


def loader_of(source: str) -> Loader:
    """Return the loader of a teacher's source.

    Raises:
        UserError: its scheme is that of no kind of teacher.
    """
    if not FOREIGN.match(source):
        return LOADERS[""]
    scheme = source.partition(":")[0]
    if scheme not in LOADERS:
        kinds = ", ".join(f"{name}:" for name in LOADERS if name)
        raise UserError(f"teachers: source {quoted(source)}: no kind of teacher '{scheme}:'; there are {kinds}")
    return LOADERS[scheme]
