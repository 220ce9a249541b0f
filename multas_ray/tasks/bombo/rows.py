"""Weak annotations: what the boxes of an image say of its mask, and its mask of its boxes.

After BoMBo (Le, Berg and Pham, "Box for Mask and Mask for Box: weak losses for multi-task partially supervised
learning", BMVC 2024).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from multas_ray.config import Config, Task
from multas_ray.data.schema import IGNORE, DatasetInfo
from multas_ray.errors import UserError

STRIDE = 4
"""Of weak masks: that of the segmentation head, of which they say no more."""
LEAST_AREA = 80 / 320**2
"""Of a component, as a part of the image; smaller ones count where there is no other."""


class WeakAnnotations:
    """Adds weak annotations to the batches of the training stream."""

    def __init__(self, config: Config, info: DatasetInfo) -> None:
        """
        Raises:
            UserError: some class has no counterpart in the other task, so that nothing is known of it.
        """
        self.tasks = weak_tasks(config)
        self.fill = config.loss.weak_inside == "fill"
        # Background comes first among the segmentation classes.
        det, seg = info.det_classes, info.seg_classes
        if "det" in self.tasks:
            _check("weak_det", det, "detection", seg[1:], "segmentation")
        if "seg" in self.tasks:
            _check("weak_seg", seg[1:], "segmentation", det, "detection")
        self.seg_of_det = [seg.index(name) if name in seg else IGNORE for name in det]
        self.det_of_seg = {number: det.index(name) for number, name in enumerate(seg) if name in det}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of a batch of `make_batch`, as far as the losses want them:

        weak_boxes: (w, M, 4) float32, normalised, with weak_labels (w, M) int64, -1 = padding, of the w rows that have
            a mask and no boxes, in order
        weak_masks: (v, size / 4, size / 4) uint8 of the v rows that have boxes and no mask, in order
        """
        rows = weak_rows(batch)
        added: dict[str, np.ndarray] = {}
        if "det" in self.tasks:
            masks = batch["masks"][np.searchsorted(np.flatnonzero(batch["has_seg"]), rows["det"])]
            found = [component_boxes(mask, self.det_of_seg) for mask in masks]
            most = max((len(labels) for _, labels in found), default=0)
            added["weak_boxes"] = np.zeros((len(found), most, 4), np.float32)
            added["weak_labels"] = np.full((len(found), most), -1, np.int64)
            for place, (boxes, labels) in enumerate(found):
                added["weak_boxes"][place, : len(boxes)] = boxes
                added["weak_labels"][place, : len(boxes)] = labels
        if "seg" in self.tasks:
            side = batch["images"].shape[-1] // STRIDE
            added["weak_masks"] = np.zeros((len(rows["seg"]), side, side), np.uint8)
            for place, row in enumerate(rows["seg"]):
                real = batch["labels"][row] >= 0
                inside = [
                    self.seg_of_det[label] if self.fill and not difficult else IGNORE
                    for label, difficult in zip(batch["labels"][row][real], batch["difficult"][row][real], strict=True)
                ]
                added["weak_masks"][place] = box_mask(batch["boxes"][row][real], inside, side)
        return added


def weak_tasks(config: Config) -> list[Task]:
    """Tasks with a weak loss."""
    return [task for task in config.model.tasks if config.loss.weak(task) > 0]


def weak_rows(batch: Any) -> dict[Task, np.ndarray]:
    """Rows that say something of a task through the other's annotation."""
    det, seg = batch["has_det"], batch["has_seg"]
    return {"det": np.flatnonzero(seg & ~det), "seg": np.flatnonzero(det & ~seg)}


def box_mask(boxes: np.ndarray, classes: Sequence[int], side: int) -> np.ndarray:
    """(side, side) uint8: the class of the smallest box that covers a pixel's centre, 0 where none does.

    Args:
        boxes: (n, 4) x1 y1 x2 y2, normalised.
        classes: of the pixels of each box.
    """
    mask = np.zeros((side, side), np.uint8)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    # A pixel's centre is half a pixel from where the pixel begins.
    x1, y1, x2, y2 = np.ceil(boxes * side - 0.5).astype(int).clip(0, side).T
    for box in np.argsort(-area):
        mask[y1[box] : y2[box], x1[box] : x2[box]] = classes[box]
    return mask


def component_boxes(mask: np.ndarray, det_of_seg: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4), normalised, and labels (n,) of the connected components (of 8 neighbours) of each class of a mask.

    Args:
        mask: (H, W) uint8 class ids.
        det_of_seg: detection class of each segmentation class that has one.
    """
    height, width = mask.shape
    boxes, labels, areas = [], [], []
    for number in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist():
        if number not in det_of_seg:
            continue
        components, count = ndimage.label(mask == number, structure=np.ones((3, 3)))
        areas += np.bincount(components.ravel(), minlength=count + 1)[1:].tolist()
        for rows, columns in ndimage.find_objects(components):
            boxes.append((columns.start / width, rows.start / height, columns.stop / width, rows.stop / height))
            labels.append(det_of_seg[number])
    found, names, area = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(areas)
    large = area >= LEAST_AREA * mask.size
    # A line of single pixels is no object.
    wide = ((found[:, 2:] - found[:, :2]) * (width, height) > 1.5).all(axis=1)
    kept = wide & large if (wide & large).any() else wide
    return found[kept], names[kept]


def _check(key: str, wanted: Sequence[str], task: str, others: Sequence[str], other: str) -> None:
    unknown = [name for name in wanted if name not in others]
    if unknown:
        raise UserError(
            f"loss.{key}: needs every {task} class to be a {other} class too; {unknown[0]} is not among "
            f"{', '.join(others)}"
        )
