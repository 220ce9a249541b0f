"""Pictures of what a network sees: ground truth beside prediction, for some validation images."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from multas_ray.data.collate import original_masks
from multas_ray.evaluate.evaluator import Prediction
from multas_ray.report.pictures import SHOWN_SCORE, grid, overlay

COLUMNS = ("ground truth", "prediction")


class SamplePictures:
    """Collects the first `count` images that are shown to it."""

    def __init__(self, det_classes: Sequence[str], seg_classes: Sequence[str], count: int) -> None:
        self.det_classes = list(det_classes)
        self.seg_classes = list(seg_classes) or ["background", *det_classes]
        self.count = count
        self.image_ids: list[str] = []
        self.rows: list[list[torch.Tensor]] = []
        """Of each image the COLUMNS, (3, H, W) uint8."""

    def add(self, batch: Mapping[str, np.ndarray], row: int, prediction: Prediction) -> None:
        """Draw an image's ground truth and prediction, unless there are enough."""
        if len(self.rows) < self.count:
            self.image_ids.append(batch["ids"][row].decode())
            self.rows.append([draw_truth(batch, row, self.det_classes), draw(batch, row, prediction, self.det_classes)])

    def picture(self) -> bytes | None:
        """The collection as one PNG, None if it is empty."""
        if not self.rows:
            return None
        return grid(self.rows, COLUMNS, classes=self.seg_classes)


def draw_truth(batch: Mapping[str, np.ndarray], row: int, det_classes: Sequence[str]) -> torch.Tensor:
    """An evaluation batch's image (at network size) with its annotation drawn on it."""
    image = torch.tensor(batch["images"][row])
    size = image.shape[-1]
    height, width = batch["sizes"][row]
    real = batch["labels"][row] >= 0
    labels = batch["labels"][row][real]
    boxes = torch.tensor(batch["boxes"][row][real]) * (size / torch.tensor([width, height, width, height]))
    mask = original_masks(dict(batch))[row]
    small = None if mask is None else F.interpolate(torch.tensor(mask)[None, None], (size, size))[0, 0]
    names = [det_classes[label] for label in labels] if det_classes else None
    if not det_classes:
        boxes, labels = boxes[:0], labels[:0]
    return overlay(image, boxes=boxes, captions=names, labels=labels, mask=small)


def draw(batch: Mapping[str, np.ndarray], row: int, prediction: Prediction, det_classes: Sequence[str]) -> torch.Tensor:
    """An evaluation batch's image with a prediction drawn on it."""
    image = torch.tensor(batch["images"][row])
    size = image.shape[-1]
    boxes = labels = captions = mask = None
    if prediction.detections is not None:
        found = prediction.detections
        shown = found.scores >= SHOWN_SCORE
        boxes, labels = found.boxes[shown].cpu() * size, found.labels[shown].tolist()
        captions = [
            f"{det_classes[label]} {score:.2f}"
            for label, score in zip(labels, found.scores[shown].tolist(), strict=True)
        ]
    if prediction.logits is not None:
        logits = F.interpolate(prediction.logits[None].float(), (size, size), mode="bilinear")
        mask = logits[0].argmax(0).to(torch.uint8).cpu()
    return overlay(image, boxes=boxes, captions=captions, labels=labels, mask=mask)
