"""COCO panoptic: a file that lists segments, and a PNG for each image, whose colours are their ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from multas_ray.config import Task
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.errors import UserError, quoted
from multas_ray.formats.coco_file import (
    CocoImage,
    Entries,
    Id,
    annotations_by_image,
    canonical_id,
    check_orphans,
    choose_classes,
    is_set,
    load,
    read_categories,
    read_entries,
    remark_unused,
    with_annotations,
)
from multas_ray.formats.coco_rows import read_box, read_image
from multas_ray.formats.files import Folder
from multas_ray.formats.pixel_maps import read_segment_ids, some, translated
from multas_ray.tasks.segmentation.rows import IGNORE

VOID = 0
"""Id of the pixels of no segment, unless a segment has it."""
LARGEST_ID = 2**24 - 1
"""Largest id that a colour can be."""


@dataclass(frozen=True)
class Panoptic:
    """The content of a file of panoptic annotation."""

    images: list[CocoImage]
    """In the order of their file names; an image has one annotation, or none."""
    classes: dict[Task, list[str]]
    """The chosen things of detection, and all chosen categories of segmentation."""
    labels: dict[Task, dict[Id, int | None]]
    """For each task, category id -> index in its classes; None for categories that are none of them."""
    remarks: list[str]
    """Lines for the user on the file as a whole."""


def read_panoptic(path: Path, classes: Sequence[str] | None, *, skip_empty: bool) -> Panoptic:
    """Read a file of panoptic annotation, the whole of it into memory.

    Args:
        path: the file.
        classes: the chosen classes; None: all, in the order of their ids.
        skip_empty: whether images without annotation are left out.

    Raises:
        UserError: the file is not COCO panoptic, contradicts itself, or has no such class.
    """
    content = load(path)
    annotations = content["annotations"]
    if annotations and not any("segments_info" in item for item in annotations):
        raise UserError(f"{path}: not COCO panoptic, no annotation has segments_info; --panoptic needs a file of it")
    remarks: list[str] = []
    entries, of_image = read_entries(content["images"], path), annotations_by_image(annotations)
    names = {key: _plain(name) for key, name in read_categories(content["categories"], path).items()}
    chosen = choose_classes(names, classes, path)
    if len(chosen) > IGNORE:
        raise UserError(f"{path}: {len(chosen)} classes, and masks hold {IGNORE} at most; choose some with --classes")
    check_orphans(entries, of_image, path, remarks)
    segments = [segment for item in annotations for segment in _listed(item)]
    remark_unused({canonical_id(segment.get("category_id")) for segment in segments}, names, chosen, remarks)
    objects = {key: names[key] for key in _things(content["categories"], path) if names[key] != "background"}
    things = [name for name in chosen if name in objects.values()]
    # A class that is called background comes first: so it is known for one.
    pixels = sorted(chosen, key=lambda name: name != "background")
    return Panoptic(
        images=with_annotations(entries, of_image, skip_empty=skip_empty),
        classes={"det": things, "seg": pixels},
        labels={
            "det": {
                key: things.index(name) if key in objects and name in things else None for key, name in names.items()
            },
            "seg": {key: pixels.index(name) if name in pixels else None for key, name in names.items()},
        },
        remarks=remarks,
    )


@dataclass(frozen=True)
class PanopticReader:
    """Reads images with boxes of things and a mask of all segments."""

    images: Folder
    """The folder below which an image's `file_name` leads."""
    maps: Folder
    """The folder below which an annotation's `file_name` leads."""
    labels: Mapping[Task, Mapping[Id, int | None]]
    """See `Panoptic`."""

    def read(self, image: CocoImage) -> Row | Reject:
        """The row of an image, or the reason why it has none."""
        return attempt(image.image_id, partial(self._read, image))

    def _read(self, image: CocoImage) -> Row:
        row, height, width = read_image(self.images, image)
        if not image.objects:
            row.notes["images without panoptic annotation, taken as unlabelled"] += 1
            return row
        if len(image.objects) > 1:
            raise Reject("broken annotation", f"{len(image.objects)} panoptic annotations of one image")
        [annotation] = image.objects
        segments = _segments(annotation)
        unknown = {segment.category for segment in segments.values()} - self.labels["seg"].keys()
        if unknown:
            raise Reject("unknown class", f"category ids {quoted(sorted(unknown, key=str))} are not listed")
        ids = read_segment_ids(self.maps.read(_map_name(annotation)), height, width)
        row.has_seg, row.mask = True, self._mask(ids, segments)
        self._add_boxes(row, ids, segments)
        return row

    def _mask(self, ids: np.ndarray, segments: Mapping[int, "_Segment"]) -> np.ndarray:
        """The class of each pixel (H, W) uint8, 255 for void and classes that are not chosen."""
        meanings = {VOID: IGNORE}
        for key, segment in segments.items():
            label = self.labels["seg"][segment.category]
            meanings[key] = IGNORE if label is None else label
        mask, unknown = translated(ids, meanings)
        if unknown:
            raise Reject("broken annotation", f"the PNG has segments that segments_info does not list: {some(unknown)}")
        return mask

    def _add_boxes(self, row: Row, ids: np.ndarray, segments: Mapping[int, "_Segment"]) -> None:
        """Annotate a row with the boxes of its things, where there are classes of things."""
        if all(label is None for label in self.labels["det"].values()):
            return
        boxes, labels, difficult = [], [], []
        for key, segment in segments.items():
            label, box = self.labels["det"][segment.category], segment.box
            if label is None:
                continue
            if box is None:
                box = _box_around(ids == key)
                row.notes["boxes made of segments' pixels: they have no bbox"] += 1
            boxes.append(box)
            labels.append(label)
            difficult.append(segment.crowd)
        row.has_det = True
        row.boxes, row.labels = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32)
        row.difficult = np.array(difficult, bool)


@dataclass(frozen=True)
class _Segment:
    """An entry of `segments_info`, checked."""

    category: Id
    crowd: bool
    box: list[float] | None
    """x1 y1 x2 y2 in pixels."""


def _plain(name: str) -> str:
    """The name of a class; that of the background as it is known."""
    return "background" if name.casefold() == "background" else name


def _things(items: Entries, path: Path) -> set[Id]:
    """The categories whose segments are single objects."""
    for item in items:
        if str(item.get("isthing")).strip().casefold() not in ("0", "1", "0.0", "1.0", "true", "false"):
            raise UserError(
                f"{path}: category {quoted(item.get('name'))} has isthing {quoted(item.get('isthing'))}: 1 is needed "
                "where each of its segments is an object, which gets a box, else 0"
            )
    return {canonical_id(item.get("id")) for item in items if is_set(item["isthing"])}


def _listed(annotation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of an annotation's `segments_info` that are objects."""
    items = annotation.get("segments_info")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _segments(annotation: Mapping[str, Any]) -> dict[int, _Segment]:
    """The segments of an annotation by their ids.

    Raises:
        Reject: one of them cannot be read.
    """
    items = annotation.get("segments_info")
    listed = _listed(annotation)
    if not isinstance(items, list) or len(listed) != len(items):
        raise Reject("broken annotation", f"segments_info {quoted(items)} is no list of objects")
    segments: dict[int, _Segment] = {}
    for item in listed:
        key = canonical_id(item.get("id"))
        if not isinstance(key, int) or key > LARGEST_ID or key in segments:
            problem = "stands twice" if key in segments else "is no number of 0 to 16777215, as a colour can be"
            raise Reject("broken annotation", f"segment id {quoted(item.get('id'))} {problem}")
        try:
            box = read_box(item.get("bbox"))
        except Reject as reject:
            raise Reject(reject.reason, f"segment {key}: {reject.detail}") from None
        segments[key] = _Segment(canonical_id(item.get("category_id")), is_set(item.get("iscrowd")), box)
    return segments


def _map_name(annotation: Mapping[str, Any]) -> str:
    """The name of an annotation's PNG."""
    name = annotation.get("file_name")
    if not isinstance(name, str) or not name:
        raise Reject("broken annotation", f"file_name {quoted(name)} of the panoptic annotation names no PNG")
    return name


def _box_around(region: np.ndarray) -> list[float]:
    """x1 y1 x2 y2 around the pixels of a region (H, W) bool; no area, where it has none."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
