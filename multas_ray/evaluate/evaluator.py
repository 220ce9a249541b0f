"""Scoring of a network on a split: each worker scores its share, and the shares are merged."""

from collections.abc import Iterable, Iterator, Mapping
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
) -> dict[str, float]:
    """Compute the metrics of a network on the batches of all workers together; every worker returns them.

    Args:
        model: network in evaluation mode.
        batches: this worker's share.
        config: thresholds and protocol.

    Returns:
        The values of `scored`.
    """
    metrics = new_metrics(model, config)
    device = model.mean.device
    for batch in batches:
        if not len(batch.images):
            continue
        predictions = predict(model, torch.tensor(batch.images, device=device), config)
        for row, prediction in enumerate(predictions):
            add(batch, row, prediction, metrics)
    for metric in metrics.values():
        for state in _from_other_workers(metric.state()):
            metric.merge(state)
    return scored(metrics)


def add(batch: EvalBatch, row: int, prediction: Prediction, metrics: Metrics) -> None:
    """Add one row's prediction to the metrics of the tasks that it is annotated for."""
    for task, metric in metrics.items():
        image = batch.annotated(task, row)
        if image is not None:
            PARTS[task].scoring.add(metric, image, prediction[task])


def computed(metrics: Metrics) -> dict[str, float]:
    """Return the values of all metrics in percent, by name."""
    return {name: value for metric in metrics.values() for name, value in metric.compute().items()}


def scored(metrics: Metrics) -> dict[str, float]:
    """Return the values of all metrics in percent, by name, with the score."""
    values = computed(metrics)
    return values | {"score": score(values)}


def _from_other_workers(state: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Exchange a metric's state among all workers, and yield those of the others."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    states: list[dict[str, np.ndarray]] = [{}] * dist.get_world_size()
    dist.all_gather_object(states, state)
    for rank, other in enumerate(states):
        if rank != dist.get_rank():
            yield other
