"""Rows of images in VOC's layout."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal
from xml.etree.ElementTree import Element

import numpy as np

from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.errors import quoted
from multas_ray.formats.class_maps import MaskClasses, read_mask
from multas_ray.formats.voc_folder import VocFolder, VocImage, object_name


@dataclass(frozen=True)
class RowReader:
    """Reads images with the annotation of their tasks."""

    folder: VocFolder
    classes: MaskClasses
    empty: Literal["background", "unlabelled"] | None = None
    """An image without XML, of those annotated with boxes: one without objects, or not annotated; None: rejected."""

    def read(self, image: VocImage) -> Row | Reject:
        """The row of an image, or the reason why it has none."""
        return attempt(image.image_id, partial(self._read, *image))

    def _read(self, image_id: str, tasks: Sequence[str]) -> Row:
        row = Row(image_id, self.folder.read_image(image_id), None, None)
        if "seg" in tasks:
            row.has_seg, row.mask = True, read_mask(self.folder.read_mask(image_id), self.classes, row.notes)
        if "det" in tasks:
            if self.empty and not self.folder.has_xml(image_id):
                row.notes[f"images without XML, taken as {self.empty} (--empty)"] += 1
                row.has_det = self.empty == "background"
                return row
            xml = self.folder.read_xml(image_id)
            row.has_det = True
            row.height, row.width = _size(xml)
            row.boxes, row.labels, row.difficult = _objects(xml, self.classes.classes, row.notes)
        return row


def _size(xml: Element) -> tuple[int | None, int | None]:
    """Height and width; None where the XML has none that can be (LabelImg writes 0)."""
    try:
        height, width = (int(float(xml.findtext(f"size/{key}", ""))) for key in ("height", "width"))
    except (ValueError, OverflowError):
        return None, None
    return (height, width) if height > 0 and width > 0 else (None, None)


def _objects(xml: Element, classes: Sequence[str], notes: Counter[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4), labels (N,) and difficult flags (N,) of the objects of these classes; notes count the others."""
    labels_of = {name.casefold(): label for label, name in enumerate(classes)}
    boxes, labels, difficult = [], [], []
    for place, item in enumerate(xml.findall("object"), start=1):
        name = object_name(item)
        if not name:
            raise Reject("broken annotation", f"object {place} has no name")
        try:
            corners = [float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            corners = [math.nan]
        if not all(map(math.isfinite, corners)):
            raise Reject("broken box", f"object {place}, {quoted(name)}: bndbox needs xmin, ymin, xmax and ymax")
        if name.casefold() not in labels_of:
            notes["boxes left out: of other classes"] += 1
        else:
            x1, y1, x2, y2 = corners
            # Corners are 1-based and inclusive: pixel 1 covers 0..1.
            boxes.append((x1 - 1, y1 - 1, x2, y2))
            labels.append(labels_of[name.casefold()])
            difficult.append(item.findtext("difficult", "0").strip().casefold() in ("1", "true"))
    with np.errstate(over="ignore"):  # A corner beyond float32 becomes inf, which the check of rows refuses by name.
        corners32 = np.array(boxes, np.float32).reshape(-1, 4)
    return corners32, np.array(labels, np.int32), np.array(difficult, bool)
