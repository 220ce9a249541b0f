"""A file of COCO instances: read whole, checked, and listed image by image."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from multas_ray.config import Task
from multas_ray.documents import read_json
from multas_ray.errors import UserError, quoted
from multas_ray.formats.files import image_ids
from multas_ray.formats.outlines import has_outline
from multas_ray.formats.source import MOST_CLASSES

SLACK = 2.0
"""Pixels that boxes may go beyond their images and still be believed to be x y width height."""

Id = int | str


@dataclass(frozen=True)
class CocoImage:
    """An image that the file lists, with its objects."""

    image_id: str
    file_name: str
    size: tuple[int, int] | None
    """Height and width in pixels; None where the file does not state them."""
    objects: Sequence[dict[str, Any]]
    """Entries of `annotations`, unchecked."""


@dataclass(frozen=True)
class Instances:
    """The content of an instances file."""

    images: list[CocoImage]
    """In the order of their file names."""
    classes: list[str]
    """The chosen classes."""
    labels: dict[Id, int | None]
    """Category id -> index in `classes`; None for categories of other classes."""
    tasks: tuple[Task, ...]
    """The tasks that the file annotates: both, where it has no object."""
    remarks: list[str]
    """Lines for the user on the file as a whole."""


def read_instances(path: Path, classes: Sequence[str] | None, *, masks: bool, skip_empty: bool) -> Instances:
    """Read an instances file. The whole of it is in memory: JSON cannot be read in parts, and it lists images first.

    Args:
        path: the file.
        classes: the chosen classes; None: all, in the order of their ids.
        masks: whether outlines are wanted at all.
        skip_empty: whether images without an object are left out.

    Raises:
        UserError: the file is not COCO instances, contradicts itself, or has no such class.
    """
    content = _load(path)
    annotations: list[dict[str, Any]] = content["annotations"]
    remarks: list[str] = []
    entries = _entries(content["images"], path)
    objects: defaultdict[Id, list[dict[str, Any]]] = defaultdict(list)
    for item in annotations:
        objects[canonical_id(item.get("image_id"))].append(item)
    has_boxes = any(item.get("bbox") for item in annotations)
    has_outlines = masks and any(has_outline(item.get("segmentation")) for item in annotations)
    names = _categories(content, path, remarks)
    chosen = _choose(names, classes, path)
    if len(chosen) > MOST_CLASSES and has_outlines:
        raise UserError(
            f"{path}: {len(chosen)} classes, and masks hold {MOST_CLASSES} at most; choose some with --classes, or "
            "keep the boxes alone with --partial det=1"
        )
    _check_orphans(entries, objects, path, remarks)
    _check_boxes(entries, objects, path)
    _check_crowds(annotations, path)
    labels = {key: chosen.index(name) if name in chosen else None for key, name in names.items()}
    _remark_unused(annotations, chosen, labels, remarks)
    if skip_empty:
        entries = [entry for entry in entries if objects.get(entry.key)]
    ids = image_ids(entry.file_name for entry in entries)
    images = [
        CocoImage(image_id, entry.file_name, entry.size, objects.get(entry.key, []))
        for image_id, entry in zip(ids, entries, strict=True)
    ]
    neither = not has_boxes and not has_outlines
    annotated: dict[Task, bool] = {"det": has_boxes or neither, "seg": has_outlines or neither}
    tasks = tuple(task for task, present in annotated.items() if present)
    return Instances(images, chosen, labels, tasks, remarks)


def canonical_id(value: Any) -> Id:
    """An id, the same whether it is written as 1, 1.0 or "1"."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    text = str(value)
    if text.isdecimal() and len(text) < 19 and str(int(text)) == text:
        return int(text)
    return text


def is_crowd(item: Mapping[str, Any]) -> bool:
    """Whether an annotation is of a crowd, however its `iscrowd` is written."""
    return str(item.get("iscrowd", 0)).strip().casefold() in ("1", "1.0", "true")


@dataclass(frozen=True)
class _Entry:
    """An entry of `images`."""

    key: Id
    file_name: str
    size: tuple[int, int] | None
    """Height and width in pixels; None where the file does not state them."""


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise UserError(f"--annotations {path}: not COCO instances, it has no list {key}")
        for place, item in enumerate(items):
            if not isinstance(item, dict):
                raise UserError(f"--annotations {path}: {key}[{place}] is {quoted(item)}, an object is needed")
    return content


def _entries(items: Sequence[dict[str, Any]], path: Path) -> list[_Entry]:
    """The entries of `images`, in the order of their file names."""
    images: dict[Id, _Entry] = {}
    for item in items:
        key, name = canonical_id(item.get("id")), item.get("file_name")
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
        images[key] = _Entry(key, name, _size(item))
    return sorted(images.values(), key=lambda image: image.file_name)


def _size(item: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width as the file has them; None where it has none that can be."""
    try:
        height, width = int(item["height"]), int(item["width"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    # A number of hundreds of digits is as wrong as this one, and no float.
    return (min(height, 2**31), min(width, 2**31)) if height > 0 and width > 0 else None


def _categories(content: dict[str, Any], path: Path, remarks: list[str]) -> dict[Id, str]:
    """Category id -> name, without the categories that cannot be classes."""
    items = content["categories"]
    names: dict[Id, str] = {}
    for item in items:
        key, name = canonical_id(item.get("id")), item.get("name")
        if name in (None, "") or isinstance(name, dict | list):
            raise UserError(f"{path}: category {quoted(item.get('id'))} has no name")
        if names.setdefault(key, str(name)) != str(name):
            raise UserError(
                f"{path}: category id {key} is {quoted(names[key])} and {quoted(str(name))}: where two files were "
                "joined, one needs other ids"
            )
    used = {canonical_id(item.get("category_id")) for item in content["annotations"]}
    parents = {str(item["supercategory"]) for item in items if item.get("supercategory")}
    for key, name in list(names.items()):
        if key in used:
            if name.casefold() == "background":
                raise UserError(f"{path}: objects of category {quoted(name)} (id {key}): background is no class")
        elif name.casefold() == "background" or (name in parents and _is_root(key, name, items)):
            # Roboflow's export lists the project itself as a category.
            del names[key]
            remarks.append(f"category {quoted(name)} (id {key}) is no class, and no object is of it: left out")
    return names


def _is_root(key: Id, name: str, items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all other categories stand under this one."""
    return all(str(item.get("supercategory")) == name for item in items if canonical_id(item.get("id")) != key)


def _choose(names: Mapping[Id, str], classes: Sequence[str] | None, path: Path) -> list[str]:
    """The chosen classes. Categories of one name are one class."""
    known = list(dict.fromkeys(names[key] for key in sorted(names, key=lambda key: (isinstance(key, str), key))))
    if classes is None:
        return known
    unknown = [name for name in classes if name not in known]
    if unknown or len(set(classes)) != len(classes):
        problem = f"no class {', '.join(map(quoted, unknown))}" if unknown else "--classes names a class twice"
        raise UserError(f"{path}: {problem}; allowed once each: {', '.join(sorted(known))}")
    return list(classes)


def _check_orphans(
    entries: Sequence[_Entry], objects: Mapping[Id, Sequence[dict[str, Any]]], path: Path, remarks: list[str]
) -> None:
    """Remark annotations of images that are not listed; refuse a file that has no others."""
    orphans = objects.keys() - {entry.key for entry in entries}
    if not orphans:
        return
    if len(orphans) == len(objects):
        known = quoted(entries[0].key) if entries else "none"
        raise UserError(
            f"{path}: no annotation belongs to an image that is listed: they name image_id such as "
            f"{quoted(min(orphans, key=str))}, the images' ids are such as {known}"
        )
    count = sum(len(objects[key]) for key in orphans)
    some = ", ".join(str(key) for key in sorted(orphans, key=str)[:3])
    remarks.append(f"{count} annotations of {len(orphans)} images that are not listed left out: image_id {some}")


def _check_boxes(entries: Sequence[_Entry], objects: Mapping[Id, Sequence[Mapping[str, Any]]], path: Path) -> None:
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


def _check_crowds(annotations: Sequence[dict[str, Any]], path: Path) -> None:
    if annotations and all(is_crowd(item) for item in annotations):
        raise UserError(
            f"{path}: every object is a crowd (iscrowd 1), whose box is not scored and whose pixels are ignored: there "
            "is nothing to learn. Where they are single objects, set iscrowd to 0"
        )


def _remark_unused(
    annotations: Sequence[dict[str, Any]], classes: Sequence[str], labels: Mapping[Id, int | None], remarks: list[str]
) -> None:
    """Remark the classes that no object is of."""
    used = {labels.get(canonical_id(item.get("category_id"))) for item in annotations}
    unused = [name for label, name in enumerate(classes) if label not in used]
    if unused and annotations:
        some = ", ".join(map(quoted, unused[:10])) + (", …" if len(unused) > 10 else "")
        remarks.append(f"no object of {len(unused)} of {len(classes)} classes: {some}")
