"""Read COCO instances: boxes, polygons and run lengths of one json file."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from multas_ray.data.row import Reject, Row, attempt, read_image_file
from multas_ray.data.schema import IGNORE
from multas_ray.errors import UserError


class Instances:
    """An instances file. The whole of it is in memory: json cannot be read in parts, and it lists images first."""

    def __init__(self, annotations: Path, classes: Sequence[str] | None = None) -> None:
        """Read the file and choose the classes to keep: all by default, in the order of their ids.

        Raises:
            UserError: the file is not COCO instances, or it has no such class.
        """
        content = _load(annotations)
        try:
            names = {int(item["id"]): str(item["name"]) for item in content["categories"]}
            self._images: list[dict[str, Any]] = sorted(content["images"], key=lambda image: image["file_name"])
            self._objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
            for item in content["annotations"]:
                self._objects[item["image_id"]].append(item)
            self.ids = [Path(image["file_name"]).stem for image in self._images]
            self._orphans = self._objects.keys() - {image["id"] for image in self._images}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{annotations}: not COCO instances ({type(error).__name__}: {error})") from None
        self.classes = [names[key] for key in sorted(names)] if classes is None else list(classes)
        unknown = [name for name in self.classes if name not in names.values()]
        if unknown or len(set(self.classes)) != len(self.classes):
            problem = f"no class {', '.join(map(repr, unknown))}" if unknown else "a class stands twice"
            raise UserError(f"{annotations}: {problem}; allowed once each: {', '.join(sorted(names.values()))}")
        self._labels = {key: self.classes.index(name) if name in self.classes else None for key, name in names.items()}

    def rows(self, images: Path) -> Iterator[Row | Reject]:
        """Every image with both tasks annotated, in the order of `ids`; one without objects is all background."""
        for image_id, image in zip(self.ids, self._images, strict=True):
            yield attempt(image_id, partial(self._row, image_id, image, images))
        for key in sorted(self._orphans, key=str):
            yield Reject("annotation without an image", f"{len(self._objects[key])} annotations", image_id=str(key))

    def _row(self, image_id: str, image: dict[str, Any], folder: Path) -> Row:
        data = read_image_file(folder / image["file_name"])
        try:
            height, width = int(image["height"]), int(image["width"])
            objects = self._objects.get(image["id"], [])
            unknown = {item["category_id"] for item in objects} - self._labels.keys()
            if unknown:
                raise Reject("unknown class", f"category ids {sorted(unknown, key=str)}")
            boxes, labels, difficult = _boxes(objects, self._labels)
            mask = _paint(objects, self._labels, height, width)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Reject("broken annotation", f"{type(error).__name__}: {error}") from None
        return Row(image_id, data, height, width, True, True, boxes, labels, difficult, mask)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"--annotations {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--annotations {path}: not JSON ({error})") from None
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise UserError(f"--annotations {path}: not COCO instances, it has no list {', '.join(missing)}")
    return content


def _boxes(
    objects: Sequence[Mapping[str, Any]], labels: Mapping[int, int | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4) as x1 y1 x2 y2, labels (N,) and difficult flags (N,) of the objects whose class is kept."""
    kept = [item for item in objects if labels[item["category_id"]] is not None]
    boxes = np.array([item["bbox"] for item in kept], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return (
        boxes.astype(np.float32),
        np.array([labels[item["category_id"]] for item in kept], np.int32),
        np.array([bool(item.get("iscrowd", 0)) for item in kept], bool),
    )


def _paint(
    objects: Sequence[Mapping[str, Any]], labels: Mapping[int, int | None], height: int, width: int
) -> np.ndarray:
    """(H, W) uint8 class ids: smaller areas over larger ones, 255 for crowds and for classes that are not kept."""
    mask = np.zeros((height, width), np.uint8)
    regions = []
    for item in objects:
        label = labels[item["category_id"]]
        value = IGNORE if label is None or item.get("iscrowd", 0) else label + 1
        rle = _run_lengths(item.get("segmentation"), height, width)
        if rle is not None:
            regions.append((int(coco_mask.area(rle)), value, rle))
    for _, value, rle in sorted(regions, key=lambda region: -region[0]):
        mask[coco_mask.decode(rle) == 1] = value
    return mask


def _run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """A segmentation in pycocotools' own form; None where there is none.

    Raises:
        Reject: it is of another size, or malformed.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise Reject("mask of another size", f"{segmentation['size']}, the image has {[height, width]}")
        if isinstance(segmentation["counts"], list):
            if sum(segmentation["counts"]) != height * width:
                raise Reject("broken annotation", "run lengths do not add up to the image")
            return coco_mask.frPyObjects(segmentation, height, width)
        return segmentation
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
        raise Reject("broken annotation", "a polygon needs three points or more")
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
