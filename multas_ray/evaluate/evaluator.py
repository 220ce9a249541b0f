"""Scoring of a network on a split: each worker scores its share, and the shares are merged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from multas_ray.config import EvaluateConfig, Task
from multas_ray.data.batch import EvalBatch
from multas_ray.evaluate.scores import score
from multas_ray.model.network import MultiTaskNet
from multas_ray.tasks import PARTS

Prediction = Mapping[Task, Any]
"""Prediction for one image by task: `Detections`; segmentation logits (C, h, w)."""
Metrics = Mapping[Task, Any]
"""Metric of each task."""


@torch.inference_mode()
def predict(model: MultiTaskNet, images: torch.Tensor, config: EvaluateConfig) -> list[Prediction]:
    """Predict for images (B, 3, size, size) uint8 on the model's device: one prediction an image."""
    size = (images.shape[-2], images.shape[-1])
    by_task = {
        task: PARTS[task].scoring.predict(output, config, model.config, size) for task, output in model(images).items()
    }
    return [{task: each[row] for task, each in by_task.items()} for row in range(len(images))]


def new_metrics(model: MultiTaskNet, config: EvaluateConfig) -> Metrics:
    """Create empty metrics of a network's tasks."""
    return {task: PARTS[task].scoring.metric(classes, config) for task, classes in model.classes.items()}


def evaluate(
    model: MultiTaskNet,
    batches: Iterable[EvalBatch],
    config: EvaluateConfig,
    sources: Sequence[str] = (),
) -> dict[str, float]:
    """Compute the metrics of a network on the batches of all workers together; every worker returns them.

    Args:
        model: network in evaluation mode.
        batches: this worker's share.
        config: thresholds and protocol.
        sources: names of data sets whose images are scored by themselves too.

    Returns:
        The values of `scored`, and under `<source>/` those of each source.
    """
    apart = {name: new_metrics(model, config) for name in sources or [""]}
    device = model.mean.device
    for batch in batches:
        if not len(batch.images):
            continue
        predictions = predict(model, torch.tensor(batch.images, device=device), config)
        for row, prediction in enumerate(predictions):
            add(batch, row, prediction, apart[batch.sources[row] if sources else ""])
    for metrics in apart.values():
        _merge_workers(metrics)
    if not sources:
        return scored(apart[""])
    together = new_metrics(model, config)
    for metrics in apart.values():
        for task, metric in metrics.items():
            together[task].merge(metric.state())
    values = scored(together)
    for source, metrics in apart.items():
        values |= {f"{source}/{name}": value for name, value in computed(metrics).items()}
    return values


def add(batch: EvalBatch, row: int, prediction: Prediction, metrics: Metrics) -> None:
    """Add one row's prediction to the metrics of the tasks that it is annotated for."""
    for task, metric in metrics.items():
        image = batch.annotated(task, row)
        if image is not None:
            PARTS[task].scoring.add(metric, image, prediction[task])


def computed(metrics: Metrics) -> dict[str, float]:
    """Return the values of all metrics in percent, by name.

    Where classes were looked for in different numbers of images, `<task>/images/<class>` are these numbers.
    """
    values = {name: value for metric in metrics.values() for name, value in metric.compute().items()}
    for task, metric in metrics.items():
        images = metric.images()
        if len(set(images.values())) > 1:
            values |= {f"{task}/images/{name}": float(count) for name, count in images.items()}
    return values


def scored(metrics: Metrics) -> dict[str, float]:
    """Return the values of all metrics in percent, by name, with the score."""
    values = computed(metrics)
    return values | {"score": score(values)}


def _merge_workers(metrics: Metrics) -> None:
    """Merge into each metric, in turn, its states of all other workers."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for metric in metrics.values():
        states: list[dict[str, np.ndarray]] = [{}] * dist.get_world_size()
        dist.all_gather_object(states, metric.state())
        for rank, other in enumerate(states):
            if rank != dist.get_rank():
                metric.merge(other)
