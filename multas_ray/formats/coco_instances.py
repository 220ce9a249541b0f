"""A file of COCO instances: read whole, checked, and listed image by image."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multas_ray.config import Task
from multas_ray.errors import UserError, quoted
from multas_ray.formats.coco_file import (
    CocoImage,
    Entries,
    Entry,
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
from multas_ray.formats.outlines import has_outline
from multas_ray.formats.source import MOST_CLASSES

SLACK = 2.0
"""Pixels that boxes may go beyond their images and still be believed to be x y width height."""


@dataclass(frozen=True)
class Instances:
    """The content of an instances file."""

    images: list[CocoImage]
    """In the order of their file names."""
    categories: dict[Id, str]
    """Category id -> name, of all that the file lists."""
    classes: list[str]
    """The chosen classes."""
    labels: dict[Id, int | None]
    """Category id -> index in `classes`; None for categories of other classes."""
    tasks: tuple[Task, ...]
    """The tasks that the file annotates: none is known, where it has no object."""
    remarks: list[str]
    """Lines for the user on the file as a whole."""


def read_instances(
    path: Path,
    classes: Sequence[str] | None,
    *,
    masks: bool,
    skip_empty: bool,
    pixel_classes: Collection[str] = (),
) -> Instances:
    """Read an instances file. The whole of it is in memory: JSON cannot be read in parts, and it lists images first.

    Args:
        path: the file.
        classes: the chosen classes; None: all, in the order of their ids.
        masks: whether outlines are wanted at all.
        skip_empty: whether images without an object are left out.
        pixel_classes: names that may be chosen beside the file's own.

    Raises:
        UserError: the file is not COCO instances, contradicts itself, or has no such class.
    """
    content = load(path)
    annotations = content["annotations"]
    if any("segments_info" in item for item in annotations):
        raise UserError(f"{path}: COCO panoptic, no instances: name the folder of its PNGs with --panoptic")
    remarks: list[str] = []
    entries, objects = read_entries(content["images"], path), annotations_by_image(annotations)
    has_boxes = any(item.get("bbox") for item in annotations)
    has_outlines = masks and any(has_outline(item.get("segmentation")) for item in annotations)
    categories = read_categories(content["categories"], path)
    used = {canonical_id(item.get("category_id")) for item in annotations}
    names = _of_objects(categories, used, content["categories"], path, remarks)
    chosen = choose_classes(names, classes, path, beside=pixel_classes)
    if len(chosen) > MOST_CLASSES and has_outlines:
        raise UserError(
            f"{path}: {len(chosen)} classes, and masks hold {MOST_CLASSES} at most; choose some with --classes, or "
            "keep the boxes alone with --partial det=1"
        )
    check_orphans(entries, objects, path, remarks)
    _check_boxes(entries, objects, path)
    _check_crowds(annotations, path)
    remark_unused(used, names, chosen, remarks)
    annotated: dict[Task, bool] = {"det": has_boxes, "seg": has_outlines}
    return Instances(
        images=with_annotations(entries, objects, skip_empty=skip_empty),
        categories=categories,
        classes=chosen,
        labels={key: chosen.index(name) if name in chosen else None for key, name in names.items()},
        tasks=tuple(task for task, present in annotated.items() if present),
        remarks=remarks,
    )


def _of_objects(
    categories: Mapping[Id, str], used: Collection[Id], items: Entries, path: Path, remarks: list[str]
) -> dict[Id, str]:
    """The categories without those that cannot be classes of objects."""
    names = dict(categories)
    parents = {str(item["supercategory"]) for item in items if item.get("supercategory")}
    for key, name in categories.items():
        if key in used:
            if name.casefold() == "background":
                raise UserError(f"{path}: objects of category {quoted(name)} (id {key}): background is no class")
        elif name.casefold() == "background" or (name in parents and _is_root(key, name, items)):
            # Roboflow's export lists the project itself as a category.
            del names[key]
            remarks.append(f"category {quoted(name)} (id {key}) is no class, and no object is of it: left out")
    return names


def _is_root(key: Id, name: str, items: Entries) -> bool:
    """Whether all other categories stand under this one."""
    return all(str(item.get("supercategory")) == name for item in items if canonical_id(item.get("id")) != key)


def _check_boxes(entries: Sequence[Entry], objects: Mapping[Id, Entries], path: Path) -> None:
    """Refuse a file whose boxes all fit their images as x1 y1 x2 y2, and some not as x y width height.

    Clipped, these would be boxes that nobody drew.
    """
    beyond = count = 0
    for entry in entries:
        for item in objects.get(entry.key, ()) if entry.size else ():
            try:
                x, y, width, height = (float(value) for value in item["bbox"])
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            rows, columns = entry.size or (0, 0)
            if not (width > x and height > y and width <= columns + SLACK and height <= rows + SLACK):
                return
            count += 1
            beyond += x + width > columns + SLACK or y + height > rows + SLACK
    if 5 * beyond > count:
        raise UserError(
            f"{path}: {beyond} of {count} boxes go beyond their images as x, y, width, height, as COCO has them, and "
            "none does as x1, y1, x2, y2: are they that? Then write x1, y1, x2 - x1, y2 - y1"
        )


def _check_crowds(annotations: Sequence[Mapping[str, Any]], path: Path) -> None:
    if annotations and all(is_set(item.get("iscrowd")) for item in annotations):
        raise UserError(
            f"{path}: every object is a crowd (iscrowd 1), whose box is not scored and whose pixels are ignored: there "
            "is nothing to learn. Where they are single objects, set iscrowd to 0"
        )
