"""Average precision by the rules of Pascal VOC (Everingham et al., IJCV 2010), at any IoU threshold.

Coordinates are continuous: VOC's inclusive pixel corners, whose width is x2 - x1 + 1, overlap by just the same IoU.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

from multas_ray.tasks.detection.scored import IOUS, ScoredImage


def voc_ap(images: Sequence[ScoredImage], classes: int, eleven_points: bool) -> np.ndarray:
    """Compute average precision in 0..1.

    A detection is judged by the object of its class that it overlaps most: right if the IoU is above the threshold and
    no better-scored detection was right for that object, without effect if the object is difficult, else wrong. Ties of
    scores keep the order of the images and of their detections.

    Args:
        images: detections and ground truth, in a fixed order.
        classes: number of classes.
        eleven_points: as in VOC 2007, the mean over recalls 0, 0.1, …, 1 of the highest precision from there on; else
            the area under that curve.

    Returns:
        (10, C): by IoU threshold .50:.95 and class; NaN for a class without an object that counts.
    """
    scores = _joined([image.det_scores for image in images], float)
    labels = _joined([image.det_labels for image in images], int)
    best = [_best_objects(image) for image in images]
    iou = _joined([overlap for overlap, _ in best], float)
    # Objects are numbered over all images.
    first = np.cumsum([0, *(len(image.gt_labels) for image in images)])
    target = _joined([index + offset for (_, index), offset in zip(best, first[:-1], strict=True)], int)
    gt_labels = _joined([image.gt_labels for image in images], int)
    difficult = _joined([image.gt_difficult for image in images], bool)

    precision = np.full((len(IOUS), classes), np.nan)
    for label in range(classes):
        positives = int(((gt_labels == label) & ~difficult).sum())
        if not positives:
            continue
        ranked = np.flatnonzero(labels == label)
        ranked = ranked[np.argsort(-scores[ranked], kind="stable")]
        for row, threshold in enumerate(IOUS):
            right, counted = _judge(iou[ranked] > threshold, target[ranked], difficult)
            precision[row, label] = _average(right[counted], positives, eleven_points)
    return precision


def judge_image(image: ScoredImage, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Judge the detections in one image: bool arrays (D,) of those that are right, and of those that count.

    Args:
        image: detections, best score first, and ground truth.
        threshold: IoU above which a detection is right.
    """
    iou, target = _best_objects(image)
    return _judge(iou > threshold, target, image.gt_difficult)


def _best_objects(image: ScoredImage) -> tuple[np.ndarray, np.ndarray]:
    """Find each detection's highest IoU (n,) with an object of its class, 0 without one, and that object's index."""
    if not len(image.gt_labels):
        return np.zeros(len(image.det_labels)), np.zeros(len(image.det_labels), int)
    overlap = box_iou(torch.from_numpy(image.det_boxes), torch.from_numpy(image.gt_boxes)).nan_to_num_(0).numpy()
    overlap = np.where(image.det_labels[:, None] == image.gt_labels, overlap, 0)
    return overlap.max(axis=1), overlap.argmax(axis=1)


def _judge(overlapping: np.ndarray, target: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Judge detections (n,), best score first: bool arrays of those that are right, and of those that count."""
    claims = np.flatnonzero(overlapping)
    _, winners = np.unique(target[claims], return_index=True)
    right = np.zeros(len(target), bool)
    right[claims[winners]] = True
    counted = np.ones(len(target), bool)
    counted[claims] = ~difficult[target[claims]]
    return right, counted


def _average(right: np.ndarray, positives: int, eleven_points: bool) -> float:
    """Compute the average precision of judged detections (n,), best score first."""
    hits = right.cumsum()
    recall = np.concatenate([[0.0], hits / positives, [1.0]])
    precision = np.concatenate([[0.0], hits / np.arange(1, len(right) + 1), [0.0]])
    # The highest precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if not eleven_points:
        return float((np.diff(recall) * envelope[1:]).sum())
    reached = np.searchsorted(recall[:-1], np.arange(0.0, 1.1, 0.1), side="left")
    return float(envelope[np.minimum(reached, len(envelope) - 1)].mean())


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
