"""Check of teachers on a run's validation split: what each is worth, how well it knows that, and what would mend it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import ray
import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.config import Config, Task
from multas_ray.data.batch import AnnotatedImage
from multas_ray.data.collate import make_eval_batch
from multas_ray.data.index import Index
from multas_ray.data.plan import EvaluationPlan
from multas_ray.data.sources import read_sources
from multas_ray.errors import RunError, UserError, first_line, root_cause
from multas_ray.evaluate.calibration import Calibration
from multas_ray.evaluate.scores import CLASS_METRIC, TASK_METRIC
from multas_ray.placement import Ask, check_placement
from multas_ray.ray_setup import start_ray
from multas_ray.resolve import resolve_precision
from multas_ray.tasks import PARTS
from multas_ray.teacher.precompute import best_size
from multas_ray.teacher.specs import require_teacher_specs
from multas_ray.teacher.teacher import TeacherSpec, to_tensors

OVERLAP = 0.5
"""IoU with an object of its class from which a detection is right."""


@dataclass(frozen=True)
class Checked:
    """Worth of a teacher on a split, over the classes that it knows."""

    source: str
    task: Task
    size: int
    """Side in pixels of the images that it was shown."""
    images: int
    """Number of images that are annotated for the task."""
    seconds: float
    """Seconds of its answers alone."""
    metrics: dict[str, float]
    """Metrics in percent by name: of the classes that it knows, and their means."""
    calibration: dict[str, float]
    """Expected calibration error by class, 0..1."""
    error: float | None
    """Expected calibration error of all that it says, 0..1; None where it says nothing."""
    temperature: float | None
    """Temperature that fits best, to be written into the configuration; None where it says nothing."""


def check_teachers(config: Config, original: bool = False) -> list[Checked]:
    """Score every teacher of a configuration on its validation split, each in a task on Ray where it would run.

    Args:
        config: configuration of the run.
        original: show each the images at its own best size, as `precompute --views original` does; else at the
            student's.

    Raises:
        UserError: configuration, data or teachers cannot be used, or the cluster has no room for one.
        RunError: the process of a teacher ended.
    """
    config = config.absolute()
    sources = read_sources(config.data)
    start_ray(math.ceil(config.teachers.resources.cpu) + 1)
    config = resolve_precision(config)
    specs = require_teacher_specs(config, sources.info)
    check_placement([Ask("teachers.resources", 1, config.teachers.resources)])
    options = config.teachers.resources.options() | {"max_retries": 0}
    if config.teachers.runtime_env:
        options |= {"runtime_env": config.teachers.runtime_env}
    task = ray.remote(**options)(_check)
    index = ray.put(sources.index("val"))
    members = [
        replace(member, terms=replace(member.terms, packed=False, features=False))
        for spec in specs.values()
        for member in spec.members
    ]
    try:
        checked: list[Checked] = ray.get([task.remote(member, config, index, original) for member in members])
        return checked
    except ray.exceptions.RayError as error:
        cause = root_cause(error)
        if isinstance(cause, UserError | RunError):
            raise cause from None
        raise RunError(f"teachers: a check ended with {type(cause).__name__}: {first_line(cause)}") from None


def _check(spec: TeacherSpec, config: Config, index: Index, original: bool) -> Checked:
    torch.set_num_threads(config.teachers.threads)
    return check_teacher(spec, config, index, "cuda" if ray.get_gpu_ids() else "cpu", original)


def check_teacher(spec: TeacherSpec, config: Config, index: Index, device: str, original: bool = False) -> Checked:
    """Score a teacher on the images of a split.

    Args:
        spec: teacher, whose answers are not packed.
        config: configuration of the run.
        index: index of the split.
        device: PyTorch device.
        original: show it the images at its own best size, not at the student's.

    Raises:
        UserError: the teacher cannot be loaded, or answers with values that are not finite.
    """
    teacher = spec.load(device)
    size = best_size(spec, config) if original else config.data.eval_size
    task, model = spec.task, config.model
    scoring, names = PARTS[task].scoring, spec.terms.classes
    metric, calibration = scoring.metric(names, config.evaluate), Calibration(names)
    known = np.flatnonzero(spec.known)
    plan = EvaluationPlan(index, config.evaluate.batch_size, size)
    images, seconds = 0, 0.0
    for step in range(plan.steps):
        batch = make_eval_batch(plan.index, plan.part(step, 0, 1))
        rows = batch.truth[task].rows
        if not len(rows):
            continue
        began = perf_counter()
        answer = teacher(batch.images[rows])
        seconds += perf_counter() - began
        images += len(rows)
        output = to_tensors({task: answer}, torch.device("cpu"))[task]
        annotated = [image for row in rows if (image := batch.annotated(task, int(row)))]
        if task == "seg":
            _add_pixels(calibration, output, annotated, known)
        predictions = scoring.predict(output, config.evaluate, model, (plan.size, plan.size))
        for image, prediction in zip(annotated, predictions, strict=True):
            scoring.add(metric, image, prediction)
    if task == "det":
        calibration.add_detections(*metric.statements(OVERLAP))
    temperature = calibration.temperature()
    return Checked(
        spec.description.source,
        task,
        size,
        images,
        seconds,
        _of_known(metric.compute(), task, [names[place] for place in known]),
        {name: error for name, error in calibration.errors().items() if name in np.array(names)[known]},
        calibration.error(),
        None if temperature is None else temperature * spec.settings.temperature,
    )


def _add_pixels(calibration: Calibration, logits: Tensor, images: Sequence[AnnotatedImage], known: np.ndarray) -> None:
    """Add the pixels of n images, in the resolution of logits (n, C, h, w), whose class the teacher knows."""
    for each, image in zip(logits, images, strict=True):
        mask = torch.from_numpy(np.asarray(image.truth))[None, None].float()
        truth = F.interpolate(mask, each.shape[1:], mode="nearest").long().flatten()
        certain = torch.from_numpy(np.isin(truth.numpy(), known))
        if image.unlabelled is not None and image.unlabelled.any():
            certain &= truth != 0
        absent = torch.ones(len(each), dtype=torch.bool)
        absent[known] = False
        told = each.masked_fill(absent[:, None, None], -torch.inf).flatten(1).T
        calibration.add_pixels(told[certain], truth[certain])


def _of_known(metrics: dict[str, float], task: Task, known: Sequence[str]) -> dict[str, float]:
    """Keep the metrics of the classes that a teacher knows, and the mean over these."""
    names = [f"{CLASS_METRIC[task]}/{name}" for name in known]
    kept = {name: metrics[name] for name in names if name in metrics}
    return {TASK_METRIC[task]: float(np.mean(list(kept.values())))} | kept if kept else {}
