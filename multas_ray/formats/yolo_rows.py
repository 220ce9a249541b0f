"""Rows of images with label files of YOLO."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from multas_ray.data.pillow import upright_size
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.formats.outlines import paint_all, read_region
from multas_ray.formats.yolo_folder import YoloImage, label_name
from multas_ray.formats.yolo_labels import Labels, YoloObject
from multas_ray.tasks.segmentation.rows import IGNORE

LOOKED_AT = 1000
"""Number of label files that are looked into for outlines before any image is read."""
CORNERS = 4
"""Number of points of a turned box, which has no other mark than this."""


def hold_outlines(labels: Labels, images: Sequence[YoloImage]) -> bool:
    """Whether an object has an outline, in LOOKED_AT of the images' label files, spread over all of them."""
    for image in images[:: max(1, len(images) // LOOKED_AT)]:
        try:
            objects = labels.read(label_name(image.name), Counter())
        except Reject:
            continue  # reported where the image is read
        if any(item.outline is not None for item in objects):
            return True
    return False


@dataclass(frozen=True)
class RowReader:
    """Reads images with the objects of their label files."""

    labels: Labels
    missing: Literal["empty", "unlabelled"] | None
    """An image without a label file: one without objects, or not annotated; None: rejected."""
    masks: bool
    """Whether outlines are made masks."""
    empty_masks: bool
    """Whether an image without objects is all background for segmentation too, as where other images have outlines."""

    def read(self, image: YoloImage) -> Row | Reject:
        """The row of an image, or the reason why it has none."""
        return attempt(image.image_id, partial(self._read, image))

    def _read(self, image: YoloImage) -> Row:
        data = self.labels.files.read(image.name)
        # Tools annotate what viewers show.
        height, width, _ = upright_size(data)
        row = Row(image.image_id, data, height, width)
        label_file = label_name(image.name)
        objects: list[YoloObject] = []
        if self.missing is None or self.labels.files.has(label_file):
            objects = self.labels.read(label_file, row.notes)
        else:
            row.notes[f"images without a label file, taken as {self.missing} (--missing)"] += 1
            if self.missing == "unlabelled":
                return row
        labelled = [item for item in objects if item.label is not None]
        sides = [width, height, width, height]
        row.has_det = True
        row.boxes = np.array([item.box * sides for item in labelled], np.float32).reshape(-1, 4)
        row.labels = np.array([item.label for item in labelled], np.int32)
        row.difficult = np.zeros(len(labelled), bool)
        if self.masks:
            self._add_mask(row, objects, height, width)
        return row

    def _add_mask(self, row: Row, objects: Sequence[YoloObject], height: int, width: int) -> None:
        """Annotate a row with a mask, (H, W) uint8 class ids; not where an object has no outline.

        Smaller areas lie over larger ones; 255 are classes that are not chosen.
        """
        if not objects:
            tasks = "both tasks" if self.empty_masks else "detection; no outline was seen in other images"
            row.notes[f"images without an object, taken as background for {tasks}"] += 1
            if self.empty_masks:
                row.has_seg, row.mask = True, np.zeros((height, width), np.uint8)
            return
        outlines = [item.outline for item in objects if item.outline is not None]
        if len(outlines) < len(objects):
            reason = "an object has no outline" if outlines else "no object has an outline"
            row.notes[f"images not annotated for segmentation: {reason}"] += 1
            return
        if all(len(outline) == CORNERS for outline in outlines):
            row.notes["masks of outlines of four points; of turned boxes, take the boxes alone (--partial det=1)"] += 1
        regions = []
        for item, outline in zip(objects, outlines, strict=True):
            try:
                polygon = (outline * [width, height]).ravel().tolist()
                region = read_region([polygon], height, width, row.notes)
            except Reject as reject:
                raise Reject(reject.reason, f"line {item.line}: {reject.detail}") from None
            if region is not None:
                regions.append((region, IGNORE if item.label is None else item.label + 1))
        columns = np.zeros(height * width, np.uint8)
        paint_all(regions, columns)
        row.has_seg, row.mask = True, np.ascontiguousarray(columns.reshape(width, height).T)
