"""Networks of this project as teachers: checkpoints of training runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multas_ray.checkpoint.folder import find_checkpoint, weights_digest
from multas_ray.checkpoint.weights import load_network
from multas_ray.config import Config, Task, TeacherConfig
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet
from multas_ray.model.precision import autocast
from multas_ray.tasks import PARTS
from multas_ray.tasks.task import General, Output
from multas_ray.teacher.labels import known_classes, place_classes
from multas_ray.teacher.strangers import Stranger, joined, stretched
from multas_ray.teacher.teacher import Answer, Description, StudentTerms, Teacher, TeacherSpec, to_answer


def describe(settings: TeacherConfig, task: Task, terms: StudentTerms) -> Description:
    """Find a teacher, and check that it fits its student, before anything starts.

    Args:
        settings: settings of the teacher; its source is a run folder, whose best checkpoint is taken, or a checkpoint
            folder.
        task: task that the teacher is to answer for.
        terms: form of the answers that its student needs.

    Raises:
        UserError: there is no checkpoint, it was not trained for the task, or knows none of the student's classes.
    """
    folder = find_checkpoint(settings.source)
    if settings.names is not None:
        raise UserError(f"teachers.{task}.names: a network of this project tells its classes; rename them by `classes`")
    network, size = _load(folder.uri, task)
    columns = place_classes(
        f"teachers.{task}.source {folder.uri}", network.classes[task], settings, task, terms.classes
    )
    # An answer in other anchors, or in those of an image of another size, is brought over by its boxes.
    same = (network.config.anchor_base, network.levels) == (terms.anchor_base, terms.levels) and settings.size is None
    return Description(
        folder.uri,
        weights_digest(folder),
        feature_width=network.config.width if same else None,
        classes=known_classes(columns, terms.classes),
        size=settings.size or size,
        every_anchor=same or task != "det",
    )


def load(spec: TeacherSpec, device: str) -> Teacher:
    """Load a teacher onto a PyTorch device.

    Raises:
        UserError: its checkpoint cannot be read, was not trained for the task, or knows none of the student's classes.
    """
    network, size = _load(spec.description.source, spec.task)
    network = network.requires_grad_(False).to(device)
    if spec.description.every_anchor and not spec.terms.original:
        return NetworkTeacher(spec, network)
    names, source = network.classes[spec.task], spec.description.source
    return Stranger(spec, Generalist(source, names, spec.description.digest, size, network, spec.task), device)


def _load(source: str, task: Task) -> tuple[MultiTaskNet, int]:
    """Load a network, and the side in pixels of the images that it was trained for."""
    network, meta = load_network(source)
    if task not in network.tasks:
        raise UserError(f"teachers.{task}.source {source}: trained for {', '.join(network.tasks)}, not {task}")
    return network, meta.size


@dataclass(frozen=True)
class Generalist:
    """Network of this project as a model of any kind, see `strangers.Model`."""

    source: str
    names: Sequence[str]
    digest: str
    size: int
    network: MultiTaskNet
    task: Task
    exclusive = False

    def __call__(self, images: Tensor) -> General:
        """Return the boxes of its anchors, or the probabilities of its pixels."""
        output = self.network(images, {self.task: None})[self.task]
        return PARTS[self.task].network.generalize(output, self.network.config, (images.shape[-2], images.shape[-1]))


class NetworkTeacher:
    """Network that answers for one task, in evaluation mode, without gradients."""

    def __init__(self, spec: TeacherSpec, network: MultiTaskNet) -> None:
        """Wrap a network.

        Args:
            spec: task, settings, and form of the answers.
            network: network on its device; it may have other tasks too.
        """
        self.spec = spec
        self.network = network
        self.device = network.mean.device
        names, run = network.classes[spec.task], spec.terms.classes
        columns = place_classes(spec.place, names, spec.settings, spec.task, run)
        self.columns = None if columns == list(range(len(run))) else columns
        """Column of each of its classes in its student's; None where they are the same."""

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Answer:
        """Answer for images (n, 3, size, size) uint8.

        Raises:
            UserError: an answer has values that are not finite.
        """
        size = (images.shape[-2], images.shape[-1])
        batch = torch.tensor(images, device=self.device)
        parts = [self._answer(part, size) for part in batch.split(self.spec.settings.batch_size or len(batch))]
        return to_answer(self.spec, images, joined(parts))

    def _answer(self, images: Tensor, size: tuple[int, int]) -> Output:
        task, terms, settings = self.spec.task, self.spec.terms, self.spec.settings
        network = PARTS[task].network
        with autocast(self.device, terms.precision):
            outputs = self.network(stretched(images, settings.size), {task: None}, features=terms.features)
        answer = network.answer(outputs[task], size)
        if self.columns is not None:
            answer = network.spread(answer, self.columns, len(terms.classes))
        # In the classes of its student, in which it was fitted.
        return network.soften(answer, settings.temperature) if settings.temperature != 1 else answer


def ema_teachers(config: Config, average: MultiTaskNet) -> dict[Task, NetworkTeacher]:
    """Make a network's moving average the teacher of the distilled tasks (Tarvainen and Valpola, NeurIPS 2017).

    Args:
        config: configuration of the run.
        average: moving average, which is updated while it teaches.
    """
    teachers = {}
    for task in config.distilled_tasks():
        terms = StudentTerms(average.classes[task], average.config.anchor_base, average.levels, config.train.precision)
        teachers[task] = NetworkTeacher(TeacherSpec(task, Description("ema", ""), terms), average)
    return teachers
