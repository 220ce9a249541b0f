"""Read COCO instances: what one JSON file annotates, image by image and object by object."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from multas_ray.data.image import upright_size
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.data.schema import IGNORE
from multas_ray.documents import read_json
from multas_ray.errors import UserError, quoted
from multas_ray.formats.files import Folder, image_ids
from multas_ray.formats.outlines import Region, has_outline, number, read_region

Empty = Literal["background", "unlabelled", "skip"]
"""What an image is that is listed without an object: annotated, and all background, as COCO means it; not annotated; or
left out."""
MOST_CLASSES = 254
"""Of masks: 0 is background and 255 is ignored."""
SLACK = 2.0
"""Pixels that boxes may go beyond their images and still be believed to be x y width height."""

Id = int | str


class Instances:
    """An instances file. The whole of it is in memory: JSON cannot be read in parts, and it lists images first."""

    def __init__(
        self,
        annotations: Path,
        images: Folder,
        classes: Sequence[str] | None = None,
        *,
        empty: Empty = "background",
        boxes_from_masks: bool = False,
        masks: bool = True,
    ) -> None:
        """Read the file and choose the classes to keep: all by default, in the order of their ids.

        Args:
            annotations: the file.
            images: the folder below which `file_name` leads.
            classes: to keep.
            empty: what an image without an object is.
            boxes_from_masks: make the box of an object that has none of its outline.
            masks: whether outlines are wanted at all.

        Raises:
            UserError: the file is not COCO instances, contradicts itself, or has no such class.
        """
        content = _load(annotations)
        self.remarks: list[str] = []
        """On the file as a whole, for its user."""
        self._folder, self._empty, self._boxes_from_masks, self._masks = images, empty, boxes_from_masks, masks
        self._images = _images(content["images"], annotations)
        self._objects: dict[Id, list[dict[str, Any]]] = defaultdict(list)
        for item in content["annotations"]:
            self._objects[_id(item.get("image_id"))].append(item)
        self._has_boxes = any(item.get("bbox") for item in content["annotations"])
        self._has_outlines = masks and any(has_outline(item.get("segmentation")) for item in content["annotations"])
        names = self._categories(content, annotations)
        self.classes = _choose(names, classes, annotations)
        self._labels = {key: self.classes.index(name) if name in self.classes else None for key, name in names.items()}
        if len(self.classes) > MOST_CLASSES and self._has_outlines:
            raise UserError(
                f"{annotations}: {len(self.classes)} classes, and masks hold {MOST_CLASSES} at most; choose some with "
                "--classes, or keep the boxes alone with --partial det=1"
            )
        self._check_orphans(annotations)
        _check_boxes(self._images, self._objects, annotations)
        if content["annotations"] and all(_is_crowd(item) for item in content["annotations"]):
            raise UserError(
                f"{annotations}: every object is a crowd (iscrowd 1), whose box is not scored and whose pixels are "
                "ignored: there is nothing to learn. Where they are single objects, set iscrowd to 0"
            )
        self._remark(content["annotations"])
        if empty == "skip":
            self._images = [image for image in self._images if self._objects.get(image.key)]
        self.ids = image_ids(image.file_name for image in self._images)

    def rows(self) -> Iterator[Row | Reject]:
        """Every image with what is annotated of it, in the order of `ids`."""
        for image_id, image in zip(self.ids, self._images, strict=True):
            yield attempt(image_id, partial(self._row, image_id, image))

    def _categories(self, content: dict[str, Any], path: Path) -> dict[Id, str]:
        """Id -> name, of those that can be classes."""
        items = content["categories"]
        names: dict[Id, str] = {}
        for item in items:
            key, name = _id(item.get("id")), item.get("name")
            if name in (None, "") or isinstance(name, dict | list):
                raise UserError(f"{path}: category {quoted(item.get('id'))} has no name")
            if names.setdefault(key, str(name)) != str(name):
                raise UserError(
                    f"{path}: category id {key} is {quoted(names[key])} and {quoted(str(name))}: where two files were "
                    "joined, one needs other ids"
                )
        used = {_id(item.get("category_id")) for item in content["annotations"]}
        parents = {str(item["supercategory"]) for item in items if item.get("supercategory")}
        for key, name in list(names.items()):
            if key in used:
                if name.casefold() == "background":
                    raise UserError(f"{path}: objects of category {quoted(name)} (id {key}): background is no class")
            elif name.casefold() == "background" or (name in parents and _is_root(key, name, items)):
                # Roboflow's export lists the project itself as a category.
                del names[key]
                self.remarks.append(f"category {quoted(name)} (id {key}) is no class, and no object is of it: left out")
        return names

    def _check_orphans(self, path: Path) -> None:
        orphans = self._objects.keys() - {image.key for image in self._images}
        if not orphans:
            return
        if len(orphans) == len(self._objects):
            known = quoted(self._images[0].key) if self._images else "none"
            raise UserError(
                f"{path}: no annotation belongs to an image that is listed: they name image_id such as "
                f"{quoted(min(orphans, key=str))}, the images' ids are such as {known}"
            )
        count = sum(len(self._objects[key]) for key in orphans)
        some = ", ".join(str(key) for key in sorted(orphans, key=str)[:3])
        self.remarks.append(
            f"{count} annotations of {len(orphans)} images that are not listed left out: image_id {some}"
        )

    def _remark(self, annotations: Sequence[dict[str, Any]]) -> None:
        used = {_id(item.get("category_id")) for item in annotations}
        seen = {self._labels.get(key) for key in used}
        unused = [name for label, name in enumerate(self.classes) if label not in seen]
        if unused and annotations:
            some = ", ".join(map(quoted, unused[:10])) + (", …" if len(unused) > 10 else "")
            self.remarks.append(f"no object of {len(unused)} of {len(self.classes)} classes: {some}")

    def _row(self, image_id: str, image: "_Image") -> Row:
        data = self._folder.read(image.file_name)
        height, width, turn = upright_size(data)
        if image.size is not None and image.size != (height, width):
            # Before anything is painted in a size that a file only claims.
            if turn < 5 or image.size != (width, height):
                raise Reject(
                    "annotation of another size",
                    f"{image.size[1]}x{image.size[0]}, the image has {width}x{height}",
                )
            height, width = image.size
        row = Row(image_id, data, height, width)
        items = self._objects.get(image.key, [])
        unknown = {_id(item.get("category_id")) for item in items} - self._labels.keys()
        if unknown:
            raise Reject("unknown class", f"category ids {quoted(sorted(unknown, key=str))} are not listed")
        if not items:
            return self._without_objects(row)
        objects = [self._read(item, height, width, row.notes) for item in items]
        self._add_boxes(row, objects, height)
        if self._masks:
            _add_mask(row, objects, height, width)
        return row

    def _without_objects(self, row: Row) -> Row:
        row.notes[f"images without an object, taken as {self._empty} (--empty)"] += 1
        if self._empty == "background":
            # Of a file of boxes only, they say nothing of masks.
            neither = not self._has_boxes and not self._has_outlines
            row.has_det, row.has_seg = self._has_boxes or neither, self._has_outlines or neither
            if row.has_seg:
                assert row.height
                assert row.width
                row.mask = np.zeros((row.height, row.width), np.uint8)
        return row

    def _read(self, item: Mapping[str, Any], height: int, width: int, notes: Counter[str]) -> "_Object":
        """An object, or the reason why its image cannot be used."""
        try:
            box, segmentation = _box(item.get("bbox")), item.get("segmentation")
            wanted = self._masks or (self._boxes_from_masks and box is None)
            region = read_region(segmentation, height, width, notes) if wanted else None
            return _Object(self._labels[_id(item.get("category_id"))], _is_crowd(item), box, region)
        except Reject as reject:
            raise Reject(reject.reason, f"annotation {quoted(item.get('id'))}: {reject.detail}") from None

    def _add_boxes(self, row: Row, objects: Sequence["_Object"], height: int) -> None:
        """All boxes, or none: where one is missing, its place would be taught as background."""
        kept = [item for item in objects if item.label is not None]
        if self._boxes_from_masks:
            for item in kept:
                if item.box is None and item.region is not None:
                    item.box = item.region.box(height)
                    row.notes["boxes made of outlines (--boxes-from-masks)"] += 1
        if any(item.box is None for item in kept):
            row.notes["images not annotated for detection: an object has no box (see --boxes-from-masks)"] += 1
            return
        row.has_det = True
        row.boxes = np.array([item.box for item in kept], np.float32).reshape(-1, 4)
        row.labels = np.array([item.label for item in kept], np.int32)
        row.difficult = np.array([item.crowd for item in kept], bool)


@dataclass(frozen=True)
class _Image:
    """An entry of `images`."""

    key: Id
    file_name: str
    size: tuple[int, int] | None
    """Height and width, where the file says them."""


@dataclass
class _Object:
    """An entry of `annotations`, checked."""

    label: int | None
    """None: of a class that is not kept."""
    crowd: bool
    box: list[float] | None
    """x1 y1 x2 y2 in pixels."""
    region: Region | None


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise UserError(f"--annotations {path}: not COCO instances, it has no list {key}")
        for place, item in enumerate(found):
            if not isinstance(item, dict):
                raise UserError(f"--annotations {path}: {key}[{place}] is {quoted(item)}, an object is needed")
    return content


def _id(value: Any) -> Id:
    """An id, the same whether it is written as 1, 1.0 or "1"."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    text = str(value)
    if text.isdecimal() and len(text) < 19 and str(int(text)) == text:
        return int(text)
    return text


def _images(items: Sequence[dict[str, Any]], path: Path) -> list[_Image]:
    """In the order of their names."""
    images: dict[Id, _Image] = {}
    for item in items:
        key, name = _id(item.get("id")), item.get("file_name")
        if name is None and isinstance(item.get("coco_url"), str):
            # LVIS: COCO's images, which lie in one folder, or in those of its splits.
            name = urlsplit(item["coco_url"]).path.rpartition("/")[2]
        if "id" not in item or not isinstance(name, str) or not name:
            raise UserError(f"{path}: image {quoted(item.get('id'))} has no id or no file_name")
        if key in images:
            raise UserError(
                f"{path}: image id {key} stands twice ({quoted(images[key].file_name)}, {quoted(name)}): where two "
                "files were joined, one needs other ids, in its annotations too"
            )
        images[key] = _Image(key, name, _size(item))
    return sorted(images.values(), key=lambda image: image.file_name)


def _size(item: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width as the file has them; None where it has none that can be."""
    try:
        height, width = int(item["height"]), int(item["width"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    # A number of hundreds of digits is as wrong as this one, and no float.
    return (min(height, 2**31), min(width, 2**31)) if height > 0 and width > 0 else None


def _is_root(key: Id, name: str, items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all other categories stand under this one."""
    return all(str(item.get("supercategory")) == name for item in items if _id(item.get("id")) != key)


def _choose(names: Mapping[Id, str], classes: Sequence[str] | None, path: Path) -> list[str]:
    """The classes to keep. Categories of one name are one class."""
    known = list(dict.fromkeys(names[key] for key in sorted(names, key=lambda key: (isinstance(key, str), key))))
    if classes is None:
        return known
    unknown = [name for name in classes if name not in known]
    if unknown or len(set(classes)) != len(classes):
        problem = f"no class {', '.join(map(quoted, unknown))}" if unknown else "--classes names a class twice"
        raise UserError(f"{path}: {problem}; allowed once each: {', '.join(sorted(known))}")
    return list(classes)


def _is_crowd(item: Mapping[str, Any]) -> bool:
    return str(item.get("iscrowd", 0)).strip().casefold() in ("1", "1.0", "true")


def _check_boxes(images: Sequence[_Image], objects: Mapping[Id, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Ask where all boxes fit their images as x1 y1 x2 y2, and some do not as x y width height: clipped, they would be
    boxes that nobody drew."""
    beyond = count = 0
    for image in images:
        for item in objects.get(image.key, ()) if image.size else ():
            try:
                x, y, width, height = (float(value) for value in item["bbox"])
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            rows, columns = image.size or (0, 0)
            if not (width > x and height > y and width <= columns + SLACK and height <= rows + SLACK):
                return
            count += 1
            beyond += x + width > columns + SLACK or y + height > rows + SLACK
    if 5 * beyond > count:
        raise UserError(
            f"{path}: {beyond} of {count} boxes go beyond their images as x, y, width, height, as COCO has them, and "
            "none does as x1, y1, x2, y2: are they that? Then write x1, y1, x2 - x1, y2 - y1"
        )


def _box(bbox: Any) -> list[float] | None:
    if bbox is None or bbox == []:
        return None
    if not isinstance(bbox, list) or len(bbox) != 4:
        found = f"{len(bbox)} numbers" if isinstance(bbox, list) else quoted(bbox)
        raise Reject(
            "broken annotation", f"a bbox is x, y, width and height, this is {found} (turned boxes are not read)"
        )
    x, y, width, height = (number(value, "the bbox's") for value in bbox)
    return [x, y, x + width, y + height]


def _add_mask(row: Row, objects: Sequence[_Object], height: int, width: int) -> None:
    """(H, W) uint8 class ids: smaller areas over larger ones, 255 for crowds, for classes that are not kept, and inside
    the boxes of objects that have no outline, unless none of the image has one."""
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
    for region, label, crowd in sorted(painted, key=lambda part: -part[0].area):
        region.paint(columns, IGNORE if label is None or crowd else label + 1)
    row.has_seg, row.mask = True, np.ascontiguousarray(image)
