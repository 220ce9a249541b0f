"""COCO average precision of boxes at the images' own resolution, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from multas_ray.evaluate.arrays import to_numpy
from multas_ray.evaluate.postprocess import Detections

MAX_DETECTIONS = 100
"""Detections of a class and image that COCO scores."""


@dataclass(frozen=True)
class _Image:
    """One scored image. Boxes are (N, 4) float64 x1 y1 x2 y2 in its own pixels."""

    det_boxes: np.ndarray
    det_scores: np.ndarray
    det_labels: np.ndarray
    gt_boxes: np.ndarray
    gt_labels: np.ndarray
    gt_difficult: np.ndarray


_EMPTY = _Image(
    det_boxes=np.empty((0, 4)),
    det_scores=np.empty(0),
    det_labels=np.empty(0, dtype=np.int64),
    gt_boxes=np.empty((0, 4)),
    gt_labels=np.empty(0, dtype=np.int64),
    gt_difficult=np.empty(0, dtype=np.bool_),
)
_DET = ("det_boxes", "det_scores", "det_labels")
_GT = ("gt_boxes", "gt_labels", "gt_difficult")


class DetectionMetric:
    """Collects detections and ground truth; the result depends on neither the order of images nor their sharding.

    Args:
        classes: names of the object classes; index = label.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self._images: dict[str, _Image] = {}

    def add(
        self,
        image_id: str,
        width: int,
        height: int,
        detections: Detections,
        gt_boxes: Tensor | np.ndarray,
        gt_labels: Tensor | np.ndarray,
        gt_difficult: Tensor | np.ndarray,
    ) -> None:
        """Add an image. An image that is added again replaces itself, so that none counts twice.

        Args:
            image_id: unique in the data set.
            width, height: of the original image in pixels.
            detections: boxes as fractions of the image.
            gt_boxes: (N, 4) x1 y1 x2 y2 in pixels of the original image.
            gt_labels: (N,) in 0..C-1.
            gt_difficult: (N,) bool: finding such an object is not rewarded, missing it not penalised.
        """
        scale = np.array([width, height, width, height], dtype=np.float64)
        self._images[image_id] = _Image(
            det_boxes=to_numpy(detections.boxes).astype(np.float64).reshape(-1, 4) * scale,
            det_scores=to_numpy(detections.scores).astype(np.float64),
            det_labels=to_numpy(detections.labels).astype(np.int64),
            gt_boxes=to_numpy(gt_boxes).astype(np.float64).reshape(-1, 4),
            gt_labels=to_numpy(gt_labels).astype(np.int64),
            gt_difficult=to_numpy(gt_difficult).astype(np.bool_),
        )

    def state(self) -> dict[str, np.ndarray]:
        """What was added, for `merge`: arrays of all images one after the other, and the counts that part them."""
        images = list(self._images.values())
        state = {name: np.concatenate([getattr(image, name) for image in [_EMPTY, *images]]) for name in _DET + _GT}
        state["image_ids"] = np.array(list(self._images), dtype=np.str_)
        state["det_counts"] = np.array([len(image.det_scores) for image in images], dtype=np.int64)
        state["gt_counts"] = np.array([len(image.gt_labels) for image in images], dtype=np.int64)
        return state

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the images of another worker."""
        parts = {}
        for names, counts in ((_DET, state["det_counts"]), (_GT, state["gt_counts"])):
            bounds = np.cumsum(counts)[:-1]
            parts.update({name: np.split(state[name], bounds) for name in names})
        for index, image_id in enumerate(state["image_ids"]):
            self._images[str(image_id)] = _Image(**{name: arrays[index] for name, arrays in parts.items()})

    def compute(self) -> dict[str, float]:
        """Metrics in percent: det/AP (mean over IoU .50:.95), det/AP50, det/AP75 and det/AP/<class>.

        A class without an object that counts has no AP: its key is left out, and the means are over the others.
        Without any such object there is no metric: an empty dict.
        """
        precision = self._precision()
        # COCOeval marks a class without objects by -1.
        known = np.flatnonzero((precision > -1).all(axis=(0, 1)))
        if not known.size:
            return {}
        by_iou = 100 * precision[:, :, known].mean(axis=1)
        return {
            "det/AP": float(by_iou.mean()),
            "det/AP50": float(by_iou[0].mean()),
            "det/AP75": float(by_iou[5].mean()),
            **{f"det/AP/{self.classes[k]}": float(value) for k, value in zip(known, by_iou.mean(axis=0), strict=True)},
        }

    def _precision(self) -> np.ndarray:
        """(10 IoU thresholds, 101 recalls, C): COCO's interpolated precision; -1 in classes without objects."""
        images = [self._images[image_id] for image_id in sorted(self._images)]
        truth = [
            {**_annotation(index, box, label), "iscrowd": int(difficult)}
            for index, image in enumerate(images)
            for box, label, difficult in zip(image.gt_boxes, image.gt_labels, image.gt_difficult, strict=True)
        ]
        found = [
            {**_annotation(index, box, label), "iscrowd": 0, "score": float(score)}
            for index, image in enumerate(images)
            for box, label, score in zip(image.det_boxes, image.det_labels, image.det_scores, strict=True)
        ]
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluator = COCOeval(self._coco(truth, len(images)), self._coco(found, len(images)), "bbox")
            evaluator.params.maxDets = [MAX_DETECTIONS]
            evaluator.params.areaRng = [[0, 1e10]]
            evaluator.params.areaRngLbl = ["all"]
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator.eval["precision"][:, :, :, 0, 0]

    def _coco(self, annotations: list[dict], images: int) -> COCO:
        coco = COCO()
        coco.dataset = {
            # COCOeval takes id 0 for "not matched".
            "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
            "images": [{"id": index} for index in range(images)],
            "categories": [{"id": label} for label in range(len(self.classes))],
        }
        coco.createIndex()
        return coco


def _annotation(image: int, box: np.ndarray, label: int) -> dict:
    x1, y1, x2, y2 = box.tolist()
    width, height = x2 - x1, y2 - y1
    return {"image_id": image, "category_id": int(label), "bbox": [x1, y1, width, height], "area": width * height}
