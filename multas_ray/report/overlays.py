"""Pictures of predictions: ground truth beside prediction, on some images of a split."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from multas_ray.config import TASK_MASKS, EvaluateConfig, Task
from multas_ray.data.collate import make_eval_batch
from multas_ray.data.describe import choose
from multas_ray.data.index import Index
from multas_ray.data.plan import Part
from multas_ray.data.read import read_sample
from multas_ray.data.transforms import Sample
from multas_ray.evaluate.annotation import Annotation, annotation
from multas_ray.evaluate.evaluator import Prediction, predict
from multas_ray.model.network import MultiTaskNet
from multas_ray.report.pictures import LONGEST, SHOWN_SCORE, Palette, Picture, grid, overlay, picture_size

COLUMNS = ("ground truth", "prediction")
"""Titles of the columns of a picture."""


@dataclass
class Samples:
    """Some images with their ground truth and a prediction."""

    palette: Palette
    image_ids: list[str]
    rows: list[list[Picture]]
    """Pictures of each image, one for each of COLUMNS."""

    def picture(self) -> bytes | None:
        """Join all rows in one PNG; None without any."""
        return grid(self.rows, COLUMNS, self.palette) if self.rows else None


def choose_samples(index: Index, tasks: Collection[Task], count: int) -> Index:
    """Choose `count` rows of a split to show: always the same, spread over the task masks with one of these tasks."""
    masks = [mask for mask in TASK_MASKS if mask in tasks or mask == "both"]
    return index.take(choose(index, count, seed=0, masks=masks))


def draw_samples(network: MultiTaskNet, index: Index, size: int, config: EvaluateConfig) -> Samples:
    """Draw all rows of an index, except those that cannot be used.

    Args:
        network: network in evaluation mode.
        index: rows to draw.
        size: side of the network's input in pixels.
        config: batch size and thresholds.
    """
    palette = Palette(network.det_classes, network.seg_classes)
    samples = Samples(palette, [], [])
    for row, prediction in predict_rows(network, index, range(len(index)), size, config):
        values, sample = read_sample(index, row)
        samples.image_ids.append(values["image_id"])
        drawn = draw_prediction(sample["image"].pixels(), prediction, palette)
        samples.rows.append([draw_truth(sample, palette), drawn])
    return samples


def predict_rows(
    network: MultiTaskNet, index: Index, rows: Sequence[int], size: int, config: EvaluateConfig
) -> Iterator[tuple[int, Prediction]]:
    """Yield rows of an index, except those that cannot be used, each with the network's prediction."""
    for start in range(0, len(rows), config.batch_size):
        chosen = np.array(rows[start : start + config.batch_size], np.int64)
        zeros = np.zeros_like(chosen)
        batch = make_eval_batch(index, Part(0, 0, size, chosen, zeros, zeros, zeros.astype(np.uint64)))
        if len(batch.images):
            images = torch.tensor(batch.images, device=network.mean.device)
            yield from zip(batch.part.rows.tolist(), predict(network, images, config), strict=True)


def draw_truth(sample: Sample, palette: Palette) -> Picture:
    """Draw a row with its annotation of the tasks that the palette has classes for.

    Raises:
        Reject: its image cannot be decoded.
    """
    boxes, mask, labels, captions = None, None, [], []
    if palette.det_classes and "boxes" in sample:
        boxes, labels = torch.from_numpy(sample["boxes"]), sample["labels"].tolist()
        captions = [
            palette.det_classes[label] + " (difficult)" * difficult
            for label, difficult in zip(labels, sample["difficult"].tolist(), strict=True)
        ]
    if palette.seg_classes and "mask" in sample:
        mask = torch.from_numpy(sample["mask"])
    return overlay(sample["image"].pixels(), palette, boxes, labels, captions, mask)


def draw_prediction(image: Tensor, prediction: Prediction, palette: Palette) -> Picture:
    """Draw an image (3, H, W) uint8 with a prediction for it."""
    # At the picture's size, not the image's: logits at the size of a large photograph would fill the memory.
    size = picture_size(*image.shape[-2:])
    return draw_annotation(resize(image.as_subclass(Tensor), list(size)), annotation(prediction, *size), palette)


def draw_annotation(
    image: Tensor, predicted: Annotation, palette: Palette, score: float = SHOWN_SCORE, longest: int = LONGEST
) -> Picture:
    """Draw an image (3, H, W) uint8 with its predicted mask, and its boxes of at least this score.

    Args:
        image: image of any size.
        predicted: prediction in the image's pixels.
        palette: colours and names of the classes.
        score: lowest score of a box that is drawn.
        longest: longest side of the picture in pixels.
    """
    boxes, labels, captions = None, [], []
    if predicted.boxes is not None and predicted.labels is not None and predicted.scores is not None:
        shown = predicted.scores >= score
        boxes, labels = torch.tensor(predicted.boxes[shown]), predicted.labels[shown].tolist()
        captions = [
            f"{palette.det_classes[label]} {sure:.2f}"
            for label, sure in zip(labels, predicted.scores[shown], strict=True)
        ]
    mask = None if predicted.mask is None else torch.tensor(predicted.mask)
    return overlay(image, palette, boxes, labels, captions, mask, longest)
