"""Rows of BDD100K."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from multas_ray.data.pillow import decode_labels
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.errors import quoted
from multas_ray.formats.files import Folder
from multas_ray.formats.outlines import number

DET_CLASSES = (
    "pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "traffic light", "traffic sign",
)  # fmt: skip
SEG_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""Cityscapes' training classes, in the order of the masks' values; there is no background."""
OTHER_NAMES = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle", "van": "car", "caravan": "car"}
"""Classes by the names that other files of boxes give them."""
NOT_SCORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
"""Categories that BDD100K's own evaluation ignores where their class is found."""


class BddImage(NamedTuple):
    """An image, with where its annotation is."""

    name: str
    """Of its file, without suffix."""
    files: tuple[str, ...]
    """Its file below the root; where both sets have it, the file of the 100K images and that of the 10K images."""
    labels: Any
    """Its objects, unchecked; None where it is not annotated with boxes."""
    mask: str | None
    """The file of its mask below the root; None where it is not annotated with pixels."""

    @property
    def set_name(self) -> str:
        """The name of its image set, `100k` or `10k`."""
        return self.files[0].split("/")[1]

    @property
    def image_id(self) -> str:
        """Names in the two sets may be the same."""
        return f"{self.set_name}/{self.name}"


def class_of(category: object) -> str | None:
    """The class of a category, whatever the file calls it; None where it is no class."""
    name = str(category)
    name = OTHER_NAMES.get(name, NOT_SCORED.get(name, name))
    return name if name in DET_CLASSES else None


@dataclass(frozen=True)
class RowReader:
    """Reads images with the annotation that they have."""

    folder: Folder
    """The root, which holds images and labels."""

    def read(self, image: BddImage) -> Row | Reject:
        """The row of an image, or the reason why it has none."""
        return attempt(image.image_id, partial(self._read, image))

    def _read(self, image: BddImage) -> Row:
        data = self.folder.read(image.files[0])
        for other in image.files[1:]:
            if self.folder.read(other) != data:
                raise Reject("two images of one name", f"{image.files[0]} and {other} are of the same size and differ")
        row = Row(image.image_id, data, None, None)
        if image.labels is not None:
            row.has_det = True
            _add_boxes(row, image.labels)
        if image.mask is not None:
            row.has_seg, row.mask = True, decode_labels(self.folder.read(image.mask))
        return row


def _add_boxes(row: Row, labels: Any) -> None:
    """Annotate a row with the boxes of its objects that are of a class."""
    if not isinstance(labels, list):
        raise Reject("broken annotation", f"labels are {quoted(labels)}, a list is needed")
    if not labels:
        row.notes["images without labels, taken as without objects"] += 1
    boxes, classes, difficult = [], [], []
    for place, label in enumerate(labels):
        if not isinstance(label, dict):
            raise Reject("broken annotation", f"label {place} is {quoted(label)}, an object is needed")
        if label.get("box2d") is None:
            row.notes["labels without a box left out: lanes, drivable areas"] += 1
            continue
        box, name = _box(label["box2d"], place), class_of(label.get("category"))
        if name is None:
            continue  # the listing of the images says how many
        boxes.append(box)
        classes.append(DET_CLASSES.index(name))
        difficult.append(label["category"] in NOT_SCORED or _is_crowd(label))
    row.boxes = np.array(boxes, np.float32).reshape(-1, 4)
    row.labels, row.difficult = np.array(classes, np.int32), np.array(difficult, bool)


def _box(box: Any, place: int) -> list[float]:
    """x1 y1 x2 y2 in pixels."""
    if not isinstance(box, Mapping):
        raise Reject("broken annotation", f"box2d of label {place} is {quoted(box)}, x1, y1, x2 and y2 are needed")
    return [number(box.get(key), f"{key} of label {place}") for key in ("x1", "y1", "x2", "y2")]


def _is_crowd(label: Mapping[str, Any]) -> bool:
    attributes = label.get("attributes")
    return isinstance(attributes, Mapping) and attributes.get("crowd") is True
