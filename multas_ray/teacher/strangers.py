"""Teachers that are no networks of this project: any model that finds boxes, or scores pixels, of classes of its own.

They know nothing of a student's anchors or resolution: what they found is brought to its classes, then to its form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from multas_ray.config import ModelConfig, Task, TeacherConfig
from multas_ray.data import image
from multas_ray.errors import UserError, first_line
from multas_ray.model.precision import autocast
from multas_ray.tasks import PARTS
from multas_ray.tasks.detection.found import Found, stacked
from multas_ray.tasks.task import General
from multas_ray.teacher.labels import known_classes, place_classes
from multas_ray.teacher.teacher import (
    Answer,
    Description,
    StudentTerms,
    TeacherSpec,
    check_finite,
    digest_of,
    digests,
    to_answer,
)


class Model(Protocol):
    """Opened model, on its device, in evaluation mode."""

    @property
    def source(self) -> str:
        """Name that leads to the model from any process, in any working folder."""

    @property
    def names(self) -> Sequence[str]:
        """Its classes, in the order of its outputs."""

    @property
    def exclusive(self) -> bool:
        """Whether an object is of one of its classes at most, so that their probabilities add up to 1 or less."""

    @property
    def digest(self) -> str:
        """Digest of everything that its answers depend on: its weights, and what it does to images and outputs."""

    @property
    def size(self) -> int | None:
        """Side in pixels of the squares that it works best on; None for any."""

    def __call__(self, images: Tensor) -> General:
        """Answer for images.

        Args:
            images: (n, 3, h, w) uint8 RGB, n >= 1, on the model's device.

        Returns:
            For detection the objects that it found, `Found`. For segmentation scores (n, C, h', w'), 0 or larger, of
            any resolution.
        """


class Opener(Protocol):
    """Module of a kind of model."""

    def open_model(self, settings: TeacherConfig, task: Task, device: str) -> Model:
        """Open a model, and load it onto a PyTorch device.

        Args:
            settings: settings of the teacher; its source begins with the kind's scheme and a colon.
            task: task that it is to answer for.
            device: PyTorch device.

        Raises:
            UserError: there is no such model, a package is missing, or it does not answer for the task.
        """


@dataclass(frozen=True)
class StrangerLoader:
    """Loader of one kind of model."""

    module: str
    """Name of an `Opener`, a module of this package. It is imported when a teacher needs it, not with this package."""

    def describe(self, settings: TeacherConfig, task: Task, terms: StudentTerms) -> Description:
        """Open a model, and check that it fits its student.

        Raises:
            UserError: there is no such model, it does not answer for an image in the form of its kind, or it knows none
                of the student's classes.
        """
        model = self._open(settings, task, "cpu")
        place = f"teachers.{task}.source {settings.source}"
        _try(place, model, task)
        columns = place_classes(place, model.names, settings, task, terms.classes)
        return Description(
            model.source,
            model.digest,
            classes=known_classes(columns, terms.classes),
            size=settings.size or model.size,
            every_anchor=False,
        )

    def load(self, spec: TeacherSpec, device: str) -> "Stranger":
        """Load a teacher onto a PyTorch device.

        Raises:
            UserError: it cannot be loaded, or is another one than it was when it was described.
        """
        settings = spec.settings.model_copy(update={"source": spec.description.source})
        model = self._open(settings, spec.task, device)
        if model.digest != spec.description.digest:
            raise UserError(f"{spec.place}: it has changed since the job began, or differs between nodes")
        return Stranger(spec, model, device)

    def _open(self, settings: TeacherConfig, task: Task, device: str) -> Model:
        opener: Opener = import_module(f"{__package__}.{self.module}")
        return opener.open_model(settings, task, device)


SMALL = 224
"""Side in pixels of the image by which a model is tried that takes any."""


@torch.inference_mode()
def _try(place: str, model: Model, task: Task) -> None:
    """Let a model answer for a black image.

    Raises:
        UserError: it fails, or its answer has another number of classes than it has names.
    """
    side = model.size or SMALL
    try:
        answer = model(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    except UserError:
        raise
    except Exception as error:  # anybody's code
        raise UserError(
            f"{place}: it does not answer for an image of {side} x {side} pixels alone "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None
    columns = answer.probabilities.shape[2] if task == "det" else answer.shape[1]
    if columns != len(model.names):
        raise UserError(f"{place}: it answers with {columns} classes, and has {len(model.names)} names")


class Stranger:
    """Teacher that answers by a model of any kind."""

    def __init__(self, spec: TeacherSpec, model: Model, device: str) -> None:
        """Wrap a model.

        Args:
            spec: task, settings, and form of the answers.
            model: model on its device.
            device: this device.
        """
        self.spec = spec
        self.model = model
        self.device = torch.device(device)
        self.columns = place_classes(spec.place, model.names, spec.settings, spec.task, spec.terms.classes)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Answer:
        """Answer for images (n, 3, size, size) uint8.

        Raises:
            UserError: an answer has values that are not finite.
        """
        spec, network = self.spec, PARTS[self.spec.task].network
        batch = torch.tensor(images, device=self.device)
        parts = self._parts(batch)
        if spec.terms.original:
            packed = [to_answer(spec, images[:0], part).packed or () for part in parts]
            return Answer(digests(images), packed=tuple(each for some in packed for each in some))
        model = ModelConfig(anchor_base=spec.terms.anchor_base, levels=spec.terms.levels)
        size = (images.shape[-2], images.shape[-1])
        return to_answer(spec, images, joined([network.fit(part, model, size) for part in parts]))

    def find(self, images: Tensor) -> General:
        """Return what the model finds in images (n, 3, h, w) uint8, in the classes of its student."""
        return joined(self._parts(images))

    def _parts(self, images: Tensor) -> list[General]:
        """Return what the model finds in as many images at a time as it may have."""
        return [self._find(part) for part in images.split(self.spec.settings.batch_size or len(images))]

    def _find(self, images: Tensor) -> General:
        settings, terms = self.spec.settings, self.spec.terms
        size = settings.size or (self.model.size if terms.original else None)
        with autocast(self.device, terms.precision):
            found = self.model(stretched(images, size))
        # Before thresholds, in which a NaN is an object that is not there.
        check_finite(self.spec, found)
        network = PARTS[self.spec.task].network
        return network.translate(found, self.columns, terms.classes, settings.temperature, self.model.exclusive)


def stretched(images: Tensor, size: int | None) -> Tensor:
    """Stretch images (n, 3, h, w) uint8 to squares of a side of `size` pixels; None: leave them as they are."""
    return images if size is None else image.stretched(images, size)


def joined(parts: Sequence[Any]) -> Any:
    """Join answers for some images each into one for all; objects are padded to the most of an image."""
    if isinstance(parts[0], Found):
        return stacked([each for part in parts for each in zip(*part, strict=True)])
    if isinstance(parts[0], tuple):
        columns = zip(*parts, strict=True)
        record: Any = type(parts[0])
        return record(*(None if column[0] is None else torch.cat(column) for column in columns))
    return torch.cat(list(parts))


def network_digest(module: nn.Module) -> str:
    """Compute the digest of a network's parameters and buffers, with their names and shapes."""
    parts: list[str | bytes] = []
    for name, tensor in module.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        parts += [
            f"{name} {values.dtype} {tuple(values.shape)}",
            values.reshape(-1).view(torch.uint8).numpy().tobytes(),
        ]
    return digest_of(*parts)
