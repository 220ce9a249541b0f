"""Weak annotations: a mask derived from the boxes of an image, and boxes derived from its mask.

After BoMBo (Le, Berg and Pham, "Box for Mask and Mask for Box: weak losses for multi-task partially supervised
learning", BMVC 2024).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from multas_ray.config import Config, Task
from multas_ray.data.batch import Some, TrainBatch
from multas_ray.data.schema import DatasetInfo
from multas_ray.errors import UserError
from multas_ray.tasks.detection.rows import UnitBoxes, collate
from multas_ray.tasks.segmentation.rows import BACKGROUND, IGNORE

STRIDE = 4
"""Stride of weak masks. That of the segmentation head: a finer mask holds no more information."""
MIN_AREA = 80 / 320**2
"""Smallest area of a component as a fraction of the image; smaller ones count only where there is no larger one."""


class WeakAnnotations:
    """Adds weak annotations to the batches of the training stream."""

    def __init__(self, config: Config, info: DatasetInfo) -> None:
        """Match the classes of the two tasks by name.

        Args:
            config: configuration of the run.
            info: description of the data set.

        Raises:
            UserError: a class has no counterpart in the other task, so that weak annotation cannot name it; or there
                is no background class.
        """
        self.tasks = weak_tasks(config)
        self.fill = config.loss.weak_inside == "fill"
        det, seg = info.det_classes, info.seg_classes
        if self.tasks and seg[:1] != [BACKGROUND]:
            raise UserError(
                f"loss.weak_{self.tasks[0]}: needs a first segmentation class '{BACKGROUND}', for pixels without an "
                f"object; the classes are {', '.join(seg)}"
            )
        if "det" in self.tasks:
            _check("weak_det", det, "detection", seg[1:], "segmentation")
        if "seg" in self.tasks:
            _check("weak_seg", seg[1:], "segmentation", det, "detection")
        self.seg_of_det = [seg.index(name) if name in seg else IGNORE for name in det]
        self.det_of_seg = {number: det.index(name) for number, name in enumerate(seg) if name in det}
        self._columns = [self.det_of_seg.get(number) for number in range(len(seg))]

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        """Add the weak annotation of the tasks that have a weak loss.

        What nobody looked for in an annotation is unlabelled in what is derived from it too.

        det: `UnitBoxes` of the rows that have a mask and no boxes. seg: masks (v, size / 4, size / 4) uint8 of the v
        rows that have boxes and no mask.
        """
        boxes, masks = batch.truth["det"], batch.truth["seg"]
        weak: dict[Task, Some[Any]] = {}
        unlabelled: dict[Task, Some[np.ndarray]] = {}
        if "det" in self.tasks:
            rows = np.setdiff1d(masks.rows, boxes.rows)
            weak["det"] = Some(rows, self._boxes(masks.at(rows)))
            unlabelled["det"] = _some_of(batch.unlabelled.get("seg"), rows, self.seg_of_det)
        if "seg" in self.tasks:
            rows = np.setdiff1d(boxes.rows, masks.rows)
            weak["seg"] = Some(rows, self._masks(boxes.at(rows), batch.part.size // STRIDE))
            unlabelled["seg"] = _some_of(batch.unlabelled.get("det"), rows, self._columns)
        return replace(batch, weak=weak, weak_unlabelled=unlabelled)

    def _boxes(self, masks: np.ndarray) -> UnitBoxes[np.ndarray]:
        """Return the components of masks (w, size, size) as boxes."""
        components = [component_boxes(mask, self.det_of_seg) for mask in masks]
        return collate(
            [
                {"boxes": boxes, "labels": labels, "difficult": np.zeros(len(labels), bool)}
                for boxes, labels in components
            ],
            size=1,
        )

    def _masks(self, truth: UnitBoxes[np.ndarray], side: int) -> np.ndarray:
        """Paint the boxes of v images into masks (v, side, side) uint8."""
        masks = np.zeros((len(truth.boxes), side, side), np.uint8)
        for place, (boxes, labels, difficult) in enumerate(zip(*truth, strict=True)):
            real = labels >= 0
            inside = [
                self.seg_of_det[label] if self.fill and not hard else IGNORE
                for label, hard in zip(labels[real], difficult[real], strict=True)
            ]
            masks[place] = box_mask(boxes[real], inside, side)
        return masks


def weak_tasks(config: Config) -> list[Task]:
    """List the tasks with a weak loss."""
    return [task for task in config.model.tasks if config.loss.weak(task) > 0]


def box_mask(boxes: np.ndarray, classes: Sequence[int], side: int) -> np.ndarray:
    """Paint boxes into a mask: each pixel gets the class of the smallest box that covers its centre, 0 without one.

    Args:
        boxes: (n, 4) x1 y1 x2 y2, normalised.
        classes: mask value of each box.
        side: side of the mask in pixels.

    Returns:
        (side, side) uint8.
    """
    mask = np.zeros((side, side), np.uint8)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    # A pixel's centre is half a pixel from where the pixel begins.
    x1, y1, x2, y2 = np.ceil(boxes * side - 0.5).astype(int).clip(0, side).T
    for box in np.argsort(-area):
        mask[y1[box] : y2[box], x1[box] : x2[box]] = classes[box]
    return mask


def component_boxes(mask: np.ndarray, det_of_seg: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Find the connected components (of 8 neighbours) of each class of a mask.

    Args:
        mask: (H, W) uint8 class ids.
        det_of_seg: detection class of each segmentation class that has one.

    Returns:
        Boxes (n, 4) float32 x1 y1 x2 y2, normalised, and labels (n,) int64.
    """
    height, width = mask.shape
    corners, classes, areas = [], [], []
    for number in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist():
        if number not in det_of_seg:
            continue
        components, count = ndimage.label(mask == number, structure=np.ones((3, 3)))
        areas += np.bincount(components.ravel(), minlength=count + 1)[1:].tolist()
        for rows, columns in ndimage.find_objects(components):
            corners.append((columns.start / width, rows.start / height, columns.stop / width, rows.stop / height))
            classes.append(det_of_seg[number])
    boxes, labels = np.array(corners, np.float32).reshape(-1, 4), np.array(classes, np.int64)
    large = np.array(areas) >= MIN_AREA * mask.size
    # A line of single pixels is no object.
    wide = ((boxes[:, 2:] - boxes[:, :2]) * (width, height) > 1.5).all(axis=1)
    objects = wide & large if (wide & large).any() else wide
    return boxes[objects], labels[objects]


def _some_of(marks: Some[np.ndarray] | None, rows: np.ndarray, columns: Sequence[int | None]) -> Some[np.ndarray]:
    """Take columns of the marks (k, C) of a task's classes for those of these rows that have any; None: no class."""
    if marks is None:
        return Some(rows[:0], np.zeros((0, len(columns)), bool))
    there = np.intersect1d(rows, marks.rows)
    values = marks.at(there)
    absent = np.zeros(len(there), bool)
    taken = [absent if column is None else values[:, column] for column in columns]
    return Some(there, np.stack(taken, axis=1))


def _check(key: str, wanted: Sequence[str], task: str, others: Sequence[str], other: str) -> None:
    unknown = [name for name in wanted if name not in others]
    if unknown:
        raise UserError(
            f"loss.{key}: needs every {task} class to be a {other} class too; {unknown[0]} is not among "
            f"{', '.join(others)}"
        )
