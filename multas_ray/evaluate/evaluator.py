"""Scoring a network on a split: each worker scores its share, the shares are merged."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from multas_ray.config import EvaluateConfig
from multas_ray.data.collate import original_masks
from multas_ray.evaluate.scores import score
from multas_ray.model.network import MultiTaskNet
from multas_ray.tasks.detection.metric import DetectionMetric
from multas_ray.tasks.detection.postprocess import Detections, detect
from multas_ray.tasks.segmentation.metric import SegmentationMetric

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image."""

    detections: Detections | None
    logits: torch.Tensor | None
    """(C, h, w) segmentation logits."""


@torch.inference_mode()
def predict(model: MultiTaskNet, images: torch.Tensor, config: EvaluateConfig) -> list[Prediction]:
    """Predictions for images (B, 3, size, size) uint8, on the model's device."""
    outputs = model(images)
    found: list[Detections] | list[None] = [None] * len(images)
    if "cls" in outputs:
        found = detect(
            outputs["cls"],
            outputs["box"],
            model.anchors(*images.shape[-2:]),
            config.score_threshold,
            config.nms_iou,
            config.max_detections,
            agnostic=config.nms == "agnostic",
        )
    logits = outputs["seg"] if "seg" in outputs else [None] * len(images)
    return [Prediction(*pair) for pair in zip(found, logits, strict=True)]


def evaluate(
    model: MultiTaskNet,
    batches: Iterable[Batch],
    config: EvaluateConfig,
) -> dict[str, float]:
    """Metrics of the model on the batches of all workers together; every worker gets them.

    Args:
        model: in evaluation mode.
        batches: of an evaluation stream, this worker's share.
    """
    detection = DetectionMetric(model.det_classes, config.protocol)
    segmentation = SegmentationMetric(model.seg_classes)
    device = model.mean.device
    for batch in batches:
        if not len(batch["images"]):
            continue
        predictions = predict(model, torch.tensor(batch["images"], device=device), config)
        masks = original_masks(dict(batch))
        for row, (prediction, mask) in enumerate(zip(predictions, masks, strict=True)):
            add(batch, row, mask, prediction, detection, segmentation)
    for metric in (detection, segmentation):
        for state in _from_other_workers(metric.state()):
            metric.merge(state)
    metrics = detection.compute() | segmentation.compute()
    return metrics | {"score": score(metrics)}


def add(
    batch: Batch,
    row: int,
    mask: np.ndarray | None,
    prediction: Prediction,
    detection: DetectionMetric,
    segmentation: SegmentationMetric,
) -> None:
    """Add one row's prediction to the metrics of the tasks that it is annotated for. mask: see `original_masks`."""
    if prediction.detections is not None and batch["has_det"][row]:
        height, width = batch["sizes"][row]
        real = batch["labels"][row] >= 0
        detection.add(
            batch["ids"][row].decode(),
            int(width),
            int(height),
            prediction.detections,
            *(torch.tensor(batch[name][row][real]) for name in ("boxes", "labels", "difficult")),
        )
    if prediction.logits is not None and mask is not None:
        segmentation.add(prediction.logits, torch.tensor(mask))


def _from_other_workers(state: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    states: list[dict[str, np.ndarray]] = [{}] * dist.get_world_size()
    dist.all_gather_object(states, state)
    for rank, other in enumerate(states):
        if rank != dist.get_rank():
            yield other
