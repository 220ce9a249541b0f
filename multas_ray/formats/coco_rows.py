"""Rows of images that a file of COCO instances lists."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from multas_ray.config import TASKS, Task
from multas_ray.data.pillow import upright_size
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.errors import quoted
from multas_ray.formats.coco_file import CocoImage, Id, canonical_id, is_set
from multas_ray.formats.files import Folder
from multas_ray.formats.outlines import Region, number, paint_all, read_region
from multas_ray.tasks.segmentation.rows import IGNORE


@dataclass(frozen=True)
class RowReader:
    """Reads images with what is annotated of them."""

    folder: Folder
    """The folder below which `file_name` leads."""
    labels: Mapping[Id, int | None]
    """See `Instances`."""
    tasks: Collection[Task]
    """The tasks that the file annotates."""
    empty: Literal["background", "unlabelled"] = "background"
    """An image that is listed without an object: annotated, and all background, as COCO means it; or not annotated."""
    boxes_from_masks: bool = False
    """Whether objects without a box get one that is made of their outline."""
    masks: bool = True
    """Whether outlines are wanted at all."""

    def read(self, image: CocoImage) -> Row | Reject:
        """The row of an image, or the reason why it has none."""
        return attempt(image.image_id, partial(self.read_row, image))

    def read_row(self, image: CocoImage) -> Row:
        """The row of an image.

        Raises:
            Reject: it has none.
        """
        row = self._annotated(image)
        if image.verified:
            row.unlabelled = self._unlabelled(image, row)
        return row

    def _annotated(self, image: CocoImage) -> Row:
        row, height, width = read_image(self.folder, image)
        unknown = {canonical_id(item.get("category_id")) for item in image.objects} - self.labels.keys()
        if unknown:
            raise Reject("unknown class", f"category ids {quoted(sorted(unknown, key=str))} are not listed")
        if not image.objects:
            return self._without_objects(row)
        objects = [self._read_object(item, height, width, row.notes) for item in image.objects]
        self._add_boxes(row, objects, height)
        if self.masks:
            _add_mask(row, objects, height, width)
        return row

    def _without_objects(self, row: Row) -> Row:
        row.notes[f"images without an object, taken as {self.empty} (--empty)"] += 1
        if self.empty == "background":
            # In a file of boxes only, it says nothing of masks.
            row.has_det, row.has_seg = "det" in self.tasks, "seg" in self.tasks
            if row.has_seg:
                assert row.height
                assert row.width
                row.mask = np.zeros((row.height, row.width), np.uint8)
        return row

    def _read_object(self, item: Mapping[str, Any], height: int, width: int, notes: Counter[str]) -> "_Object":
        """An object.

        Raises:
            Reject: it cannot be read, nor can its image be used.
        """
        try:
            box, segmentation = read_box(item.get("bbox")), item.get("segmentation")
            wanted = self.masks or (self.boxes_from_masks and box is None)
            region = read_region(segmentation, height, width, notes) if wanted else None
            return _Object(self.labels[canonical_id(item.get("category_id"))], is_set(item.get("iscrowd")), box, region)
        except Reject as reject:
            raise Reject(reject.reason, f"annotation {quoted(item.get('id'))}: {reject.detail}") from None

    def _unlabelled(self, image: CocoImage, row: Row) -> dict[Task, tuple[int, ...]]:
        """The classes of each task that nobody looked for in an image that says which were."""
        assert image.verified
        present = {canonical_id(item.get("category_id")) for item in image.objects}
        sought = {self.labels.get(key) for key in present.union(image.verified.absent)}
        sought -= {self.labels.get(key) for key in image.verified.partly}
        others = sorted({label for label in self.labels.values() if label is not None} - sought)
        # Background is the first of the pixel classes.
        labels: dict[Task, tuple[int, ...]] = {"det": tuple(others), "seg": tuple(label + 1 for label in others)}
        return {task: labels[task] for task in TASKS if getattr(row, f"has_{task}") and others}

    def _add_boxes(self, row: Row, objects: Sequence["_Object"], height: int) -> None:
        """Annotate a row with all boxes, or none: where one is missing, its place would be taught as background."""
        labelled = [item for item in objects if item.label is not None]
        if self.boxes_from_masks:
            for item in labelled:
                if item.box is None and item.region is not None:
                    item.box = item.region.box(height)
                    row.notes["boxes made of outlines (--boxes-from-masks)"] += 1
        if any(item.box is None for item in labelled):
            row.notes["images not annotated for detection: an object has no box (see --boxes-from-masks)"] += 1
            return
        row.has_det = True
        row.boxes = np.array([item.box for item in labelled], np.float32).reshape(-1, 4)
        row.labels = np.array([item.label for item in labelled], np.int32)
        row.difficult = np.array([item.crowd for item in labelled], bool)


@dataclass
class _Object:
    """An entry of `annotations`, checked."""

    label: int | None
    """None: of a class that is not chosen."""
    crowd: bool
    box: list[float] | None
    """x1 y1 x2 y2 in pixels."""
    region: Region | None


def read_image(folder: Folder, image: CocoImage) -> tuple[Row, int, int]:
    """The row of an image without annotation, and the height and width in pixels of the frame of its annotation.

    Raises:
        Reject: the image cannot be read, or is of another size than its file says.
    """
    nested = f"{image.folder}/{image.file_name}"
    data = folder.read(nested if image.folder and folder.has(nested) else image.file_name)
    height, width, turn = upright_size(data)
    if image.size is not None and image.size != (height, width):
        # Before anything is painted in a size that a file only claims.
        if turn < 5 or image.size != (width, height):
            raise Reject(
                "annotation of another size",
                f"{image.size[1]}x{image.size[0]}, the image has {width}x{height}",
            )
        height, width = image.size
    return Row(image.image_id, data, height, width), height, width


def read_box(bbox: Any) -> list[float] | None:
    """x1 y1 x2 y2 of an annotation's `bbox`; None where it has none.

    Raises:
        Reject: it is none of four numbers.
    """
    if bbox is None or bbox == []:
        return None
    if not isinstance(bbox, list) or len(bbox) != 4:
        given = f"{len(bbox)} numbers" if isinstance(bbox, list) else quoted(bbox)
        raise Reject(
            "broken annotation", f"a bbox is x, y, width and height, this is {given} (turned boxes are not read)"
        )
    x, y, width, height = (number(value, "the bbox's") for value in bbox)
    return [x, y, x + width, y + height]


def _add_mask(row: Row, objects: Sequence[_Object], height: int, width: int) -> None:
    """Annotate a row with a mask, (H, W) uint8 class ids; not where no object has an outline.

    Smaller areas lie over larger ones; 255 are crowds, classes that are not chosen, and the boxes of objects without an
    outline.
    """
    if not any(item.region for item in objects):
        row.notes["images not annotated for segmentation: no object has an outline"] += 1
        return
    if any(item.region is None and item.box is None for item in objects):
        row.notes["images not annotated for segmentation: an object has neither outline nor box"] += 1
        return
    columns = np.zeros(height * width, np.uint8)
    image = columns.reshape(width, height).T
    for item in objects:
        if item.region is None and item.box is not None:
            x1, y1, x2, y2 = np.clip(item.box, 0, [width, height, width, height])
            image[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = IGNORE
            row.notes["objects without an outline: their boxes' pixels are ignored (255)"] += 1
    painted = [(item.region, item.label, item.crowd) for item in objects if item.region]
    values = [(region, IGNORE if label is None or crowd else label + 1) for region, label, crowd in painted]
    paint_all(values, columns)
    row.has_seg, row.mask = True, np.ascontiguousarray(image)
