"""Networks of this project as teachers: checkpoints of training runs."""

import numpy as np
import torch

from multas_ray.checkpoint.folder import find_checkpoint, weights_digest
from multas_ray.checkpoint.weights import load_network
from multas_ray.config import Config, Task
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet
from multas_ray.model.precision import autocast
from multas_ray.tasks import PARTS
from multas_ray.tasks.segmentation.rows import BACKGROUND
from multas_ray.teacher.teacher import Answer, Description, StudentTerms, TeacherSpec, to_answer


def describe(source: str, task: Task, terms: StudentTerms) -> Description:
    """Find a teacher, and check that it fits its student, before anything starts.

    Args:
        source: run folder, whose best checkpoint is taken, or checkpoint folder.
        task: task that the teacher is to answer for.
        terms: form of the answers that its student needs.

    Raises:
        UserError: there is no checkpoint, it was not trained for the task, knows none of the student's classes, or has
            other anchors.
    """
    folder = find_checkpoint(source)
    network = _load(folder.uri, task, terms)
    if task == "det":
        for name, value, expected in (
            ("anchor_base", network.config.anchor_base, terms.anchor_base),
            ("levels", network.levels, terms.levels),
        ):
            if value != expected:
                raise UserError(
                    f"teachers.det.checkpoint {folder.uri}: its model.{name} is {value}, the student's "
                    f"{expected}; detection is distilled anchor by anchor, so they must be equal"
                )
    known = tuple(name for name in terms.classes if name in network.classes[task])
    return Description(folder.uri, weights_digest(folder), network.config.width, known)


def load(spec: TeacherSpec, device: str) -> "NetworkTeacher":
    """Load a teacher onto a PyTorch device.

    Raises:
        UserError: its checkpoint cannot be read, was not trained for the task, or knows none of the student's classes.
    """
    network = _load(spec.description.source, spec.task, spec.terms)
    return NetworkTeacher(spec, network.requires_grad_(False).to(device))


def _load(source: str, task: Task, terms: StudentTerms) -> MultiTaskNet:
    network, _ = load_network(source)
    place = f"teachers.{task}.checkpoint {source}"
    if task not in network.tasks:
        raise UserError(f"{place}: trained for {', '.join(network.tasks)}, not {task}")
    classes = network.classes[task]
    if not set(classes) & set(terms.classes) - {BACKGROUND}:
        raise UserError(
            f"{place}: its classes are {', '.join(classes)}; none of them is among those of the run, "
            f"{', '.join(terms.classes)}"
        )
    return network


class NetworkTeacher:
    """Network that answers for one task, in evaluation mode, without gradients."""

    def __init__(self, spec: TeacherSpec, network: MultiTaskNet) -> None:
        """Wrap a network.

        Args:
            spec: task and form of the answers.
            network: network on its device; it may have other tasks too.
        """
        self.spec = spec
        self.network = network
        self.device = network.mean.device
        own, terms = network.classes[spec.task], spec.terms.classes
        # What the student has no class for is background to it.
        other = 0 if own[0] == terms[0] == BACKGROUND else None
        self.columns = None if own == terms else [terms.index(name) if name in terms else other for name in own]
        """Column of each of its classes in its student's; None where they are the same."""

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Answer:
        """Answer for images (n, 3, size, size) uint8.

        Raises:
            UserError: an answer has values that are not finite.
        """
        task, terms = self.spec.task, self.spec.terms
        with autocast(self.device, terms.precision):
            outputs = self.network(torch.tensor(images, device=self.device), {task: None}, features=terms.features)
        size = (images.shape[-2], images.shape[-1])
        answer = PARTS[task].network.answer(outputs[task], size)
        if self.columns is not None:
            answer = PARTS[task].network.spread(answer, self.columns, len(terms.classes))
        return to_answer(self.spec, images, answer)


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
