"""A JSON file of COCO's: its images, its categories, and what it says of the file as a whole."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from multas_ray.documents import read_json
from multas_ray.errors import UserError, quoted
from multas_ray.formats.files import image_ids

Id = int | str
Entries = list[dict[str, Any]]
"""A list of the file, each of its items an object."""


@dataclass(frozen=True)
class Verified:
    """The classes that somebody looked for in an image, beside those of its objects (LVIS)."""

    absent: tuple[Id, ...]
    """Categories of which the image has no object."""
    partly: tuple[Id, ...]
    """Categories of which not every object is annotated."""


@dataclass(frozen=True)
class CocoImage:
    """An image that the file lists, with its annotations."""

    image_id: str
    file_name: str
    size: tuple[int, int] | None
    """Height and width in pixels; None where the file does not state them."""
    objects: Sequence[dict[str, Any]]
    """Entries of `annotations`, unchecked."""
    folder: str = ""
    """Folder of COCO's in which the image may lie; empty where the file names none beside `file_name`."""
    verified: Verified | None = None
    """None: every class of the file was looked for."""


@dataclass(frozen=True)
class Entry:
    """An entry of `images`."""

    key: Id
    file_name: str
    size: tuple[int, int] | None
    folder: str
    verified: Verified | None


def canonical_id(value: Any) -> Id:
    """An id, the same whether it is written as 1, 1.0 or "1"."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    text = str(value)
    if text.isdecimal() and len(text) < 19 and str(int(text)) == text:
        return int(text)
    return text


def is_set(value: Any) -> bool:
    """Whether a flag of COCO's, such as `iscrowd`, is set, however it is written."""
    return str(value).strip().casefold() in ("1", "1.0", "true")


def load(path: Path) -> dict[str, Entries]:
    """The lists of images, annotations and categories of a file.

    Raises:
        UserError: the file cannot be read, or lacks one of them.
    """
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise UserError(f"--annotations {path}: not COCO's, it has no list {key}")
        for place, item in enumerate(items):
            if not isinstance(item, dict):
                raise UserError(f"--annotations {path}: {key}[{place}] is {quoted(item)}, an object is needed")
    lists: dict[str, Entries] = content
    return lists


def read_entries(items: Entries, path: Path) -> list[Entry]:
    """The entries of `images`, in the order of their file names.

    Raises:
        UserError: an image has no id or name, or two have one id.
    """
    images: dict[Id, Entry] = {}
    for item in items:
        key, name, folder = canonical_id(item.get("id")), item.get("file_name"), ""
        if name is None and isinstance(item.get("coco_url"), str):
            # LVIS: COCO's images, which lie in one folder, or in those of COCO's splits.
            rest, _, name = urlsplit(item["coco_url"]).path.rpartition("/")
            folder = rest.rpartition("/")[2]
        if "id" not in item or not isinstance(name, str) or not name:
            raise UserError(f"{path}: image {quoted(item.get('id'))} has no id or no file_name")
        if key in images:
            raise UserError(
                f"{path}: image id {key} stands twice ({quoted(images[key].file_name)}, {quoted(name)}): where two "
                "files were joined, one needs other ids, in its annotations too"
            )
        images[key] = Entry(key, name, _size(item), folder, _verified(item, path))
    return sorted(images.values(), key=lambda image: image.file_name)


def annotations_by_image(annotations: Entries) -> Mapping[Id, Entries]:
    """The annotations of each image that has some."""
    of_image: defaultdict[Id, Entries] = defaultdict(list)
    for item in annotations:
        of_image[canonical_id(item.get("image_id"))].append(item)
    return of_image


def with_annotations(
    entries: Sequence[Entry], annotations: Mapping[Id, Entries], *, skip_empty: bool
) -> list[CocoImage]:
    """The images with their annotations, in the order of the entries.

    Args:
        entries: of the images.
        annotations: of each image that has some.
        skip_empty: whether images without annotation are left out.
    """
    if skip_empty:
        entries = [entry for entry in entries if annotations.get(entry.key)]
    ids = image_ids(entry.file_name for entry in entries)
    return [
        CocoImage(id_, entry.file_name, entry.size, annotations.get(entry.key, []), entry.folder, entry.verified)
        for id_, entry in zip(ids, entries, strict=True)
    ]


def read_categories(items: Entries, path: Path) -> dict[Id, str]:
    """Category id -> name.

    Raises:
        UserError: a category has no name, or one id has two.
    """
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
    return names


def choose_classes(
    names: Mapping[Id, str], classes: Sequence[str] | None, path: Path, *, beside: Collection[str] = ()
) -> list[str]:
    """The chosen classes. Categories of one name are one class.

    Args:
        names: category id -> name.
        classes: the names that are chosen; None: all, in the order of their ids.
        path: the file, for messages.
        beside: names that may be chosen too and are no categories of the file.

    Raises:
        UserError: there is no such class, or one is chosen twice.
    """
    known = list(dict.fromkeys(names[key] for key in sorted(names, key=lambda key: (isinstance(key, str), key))))
    if classes is None:
        return known
    unknown = [name for name in classes if name not in known and name not in beside]
    if unknown or len(set(classes)) != len(classes):
        problem = f"no class {', '.join(map(quoted, unknown))}" if unknown else "--classes names a class twice"
        raise UserError(f"{path}: {problem}; allowed once each: {', '.join(sorted({*known, *beside}))}")
    return [name for name in classes if name in known]


def check_orphans(entries: Sequence[Entry], annotations: Mapping[Id, Entries], path: Path, remarks: list[str]) -> None:
    """Remark annotations of images that are not listed; refuse a file that has no others.

    Raises:
        UserError: no annotation is of an image that is listed.
    """
    orphans = annotations.keys() - {entry.key for entry in entries}
    if not orphans:
        return
    if len(orphans) == len(annotations):
        known = quoted(entries[0].key) if entries else "none"
        raise UserError(
            f"{path}: no annotation belongs to an image that is listed: they name image_id such as "
            f"{quoted(min(orphans, key=str))}, the images' ids are such as {known}"
        )
    count = sum(len(annotations[key]) for key in orphans)
    some = ", ".join(str(key) for key in sorted(orphans, key=str)[:3])
    remarks.append(f"{count} annotations of {len(orphans)} images that are not listed left out: image_id {some}")


def remark_unused(used: Collection[Id], names: Mapping[Id, str], classes: Sequence[str], remarks: list[str]) -> None:
    """Remark the classes that no object is of, in a file that has objects.

    Args:
        used: the categories of its objects.
        names: category id -> name.
        classes: the chosen classes.
        remarks: for the user, added to.
    """
    present = {names.get(key) for key in used}
    unused = [name for name in classes if name not in present]
    if unused and used:
        some = ", ".join(map(quoted, unused[:10])) + (", …" if len(unused) > 10 else "")
        remarks.append(f"no object of {len(unused)} of {len(classes)} classes: {some}")


def _size(item: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width as the file has them; None where it has none that can be."""
    try:
        height, width = int(item["height"]), int(item["width"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    # A number of hundreds of digits is as wrong as this one, and no float.
    return (min(height, 2**31), min(width, 2**31)) if height > 0 and width > 0 else None


def _verified(item: Mapping[str, Any], path: Path) -> Verified | None:
    """What LVIS says of the classes that were looked for; None in a file that says nothing of it."""
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    if not any(key in item for key in keys):
        return None
    for key in keys:
        if not isinstance(item.get(key, []), list):
            raise UserError(f"{path}: image {quoted(item.get('id'))}: {key} {quoted(item[key])} is no list of ids")
    absent, partly = (tuple(map(canonical_id, item.get(key, []))) for key in keys)
    return Verified(absent, partly)
