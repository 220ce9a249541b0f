"""Any callable as a teacher: `python:MODULE:FACTORY`.

`FACTORY(device)` returns it. It has `classes`, a list of names, and is called with images (n, 3, h, w) uint8 RGB on the
device. For segmentation it returns scores (n, C, h', w'), 0 or larger, of any resolution. For detection it returns a
list of n pairs of boxes (k, 4), x1 y1 x2 y2 in pixels of these images, and probabilities (k, C) in 0..1.

It may have `size`, the side in pixels of the squares that it works best on, and `digest`, a text that changes with its
answers. Without one, the source files of both are digested, and the weights of the networks among its attributes.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multas_ray.config import Task, TeacherConfig
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.tasks.detection.found import Found, stacked
from multas_ray.tasks.task import General
from multas_ray.teacher.strangers import network_digest
from multas_ray.teacher.teacher import digest_of


class PythonModel:
    """Model that a function of a user's module made, see `strangers.Model`."""

    exclusive = False

    def __init__(self, source: str, task: Task, model: Any, factory: Any, names: Sequence[str]) -> None:
        """Wrap what the factory returned, whose classes have these names."""
        self.source = source
        self.task = task
        self.model = model
        self.names = names
        self.digest = _digest(model, factory)
        self.size: int | None = getattr(model, "size", None)

    def __call__(self, images: Tensor) -> General:
        """Answer for images (n, 3, h, w) uint8, and check the answer's form."""
        answer = self.model(images)
        return self._objects(answer, images) if self.task == "det" else self._scores(answer, images)

    def _scores(self, answer: Any, images: Tensor) -> Tensor:
        shape = tuple(getattr(answer, "shape", ()))
        if len(shape) != 4 or shape[:2] != (len(images), len(self.names)) or float(answer.min()) < 0:
            raise self._misfit(
                answer, f"scores ({len(images)}, {len(self.names)}, h, w), 0 or larger, for {len(images)}"
            )
        return torch.as_tensor(answer, device=images.device)

    def _objects(self, answer: Any, images: Tensor) -> Found:
        height, width = images.shape[-2:]
        sides = torch.tensor([width, height, width, height], device=images.device)
        try:
            pairs = [tuple(torch.as_tensor(part, device=images.device).float() for part in pair) for pair in answer]
            fits = all(
                boxes.shape == (len(boxes), 4) and p.shape == (len(boxes), len(self.names)) for boxes, p in pairs
            )
        except (TypeError, ValueError, AttributeError, IndexError):
            pairs, fits = [], False
        if not fits or len(pairs) != len(images):
            wanted = f"{len(images)} pairs of boxes (k, 4) and probabilities (k, {len(self.names)}) for {len(images)}"
            raise self._misfit(answer, wanted)
        return stacked([(boxes / sides, p.clamp(0, 1)) for boxes, p in pairs])

    def _misfit(self, answer: Any, wanted: str) -> UserError:
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        return UserError(
            f"teachers.{self.task}.source {self.source}: it answers with {found}; needed are {wanted} images"
        )


def open_model(settings: TeacherConfig, task: Task, device: str) -> PythonModel:
    """Import a module, and call its factory; see `strangers.Opener`."""
    place = f"teachers.{task}.source {settings.source}"
    _, module, name = [*settings.source.split(":"), "", ""][:3]
    if not module or not name:
        raise UserError(f"{place}: write it as python:MODULE:FACTORY")
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{place}: {first_line(error)}; the module must be importable in every process: installed, on PYTHONPATH, "
            "or in the working directory of a submitted job"
        ) from None
    except Exception as error:  # anybody's code
        raise UserError(f"{place}: {module} fails ({type(error).__name__}: {first_line(error)})") from None
    try:
        model = factory(device)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{place}: {name} fails ({type(error).__name__}: {first_line(error)})") from None
    classes = settings.names or getattr(model, "classes", None)
    if not isinstance(classes, list | tuple) or not all(isinstance(each, str) for each in classes):
        raise UserError(f"{place}: what {name} returns needs `classes`, a list of names (found: {quoted(classes)})")
    return PythonModel(settings.source, task, model, factory, list(classes))


def _digest(model: Any, factory: Any) -> str:
    given = getattr(model, "digest", None)
    if given is not None:
        return digest_of(str(given))
    networks = [model] if isinstance(model, nn.Module) else []
    networks += [each for each in getattr(model, "__dict__", {}).values() if isinstance(each, nn.Module)]
    # The factory may be one of functools, and what it returns of another module.
    modules = [getattr(each, "__module__", None) for each in (factory, model, type(model))]
    files = [getattr(sys.modules.get(name or ""), "__file__", None) for name in dict.fromkeys(modules)]
    return digest_of(*(Path(file).read_bytes() for file in files if file), *map(network_digest, networks))
