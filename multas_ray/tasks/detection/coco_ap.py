"""COCO average precision of boxes, by pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from multas_ray.tasks.detection.scored import IOUS, ScoredImage

MAX_DETECTIONS = 100
"""Largest number of detections of a class and image that COCO scores."""


def coco_ap(images: Sequence[ScoredImage], classes: int) -> np.ndarray:
    """Compute average precision in 0..1: the mean over 101 recalls of the interpolated precision.

    Args:
        images: detections and ground truth of each image; difficult objects count as COCO's crowds.
        classes: number C of classes.

    Returns:
        (10, C): by IoU threshold and class; NaN for a class without an object that counts.
    """
    truth = [
        {**_annotation(index, box, label), "iscrowd": int(difficult)}
        for index, image in enumerate(images)
        for box, label, difficult in zip(image.gt_boxes, image.gt_labels, image.gt_difficult, strict=True)
    ]
    detections = [
        {**_annotation(index, box, label), "iscrowd": 0, "score": float(score)}
        for index, image in enumerate(images)
        for box, label, score in zip(image.det_boxes, image.det_labels, image.det_scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator = COCOeval(_coco(truth, len(images), classes), _coco(detections, len(images), classes), "bbox")
        evaluator.params.iouThrs = IOUS
        evaluator.params.maxDets = [MAX_DETECTIONS]
        evaluator.params.areaRng = [[0, 1e10]]
        evaluator.params.areaRngLbl = ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, 0]
    # COCOeval marks a class without objects by -1.
    return np.where((precision > -1).all(axis=1), precision.mean(axis=1), np.nan)


def _coco(annotations: list[dict[str, Any]], images: int, classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        # COCOeval takes id 0 for "not matched".
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
        "images": [{"id": index} for index in range(images)],
        "categories": [{"id": label} for label in range(classes)],
    }
    coco.createIndex()
    return coco


def _annotation(image: int, box: np.ndarray, label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box.tolist()
    width, height = x2 - x1, y2 - y1
    return {"image_id": image, "category_id": int(label), "bbox": [x1, y1, width, height], "area": width * height}
