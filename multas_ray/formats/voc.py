"""Read Pascal VOC's layout, by whomever it was made: images, XML of boxes, masks of class ids or colours, and lists."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeXml

from multas_ray.config import Task
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.data.schema import IGNORE
from multas_ray.documents import decode_text, read_text
from multas_ray.errors import UserError, quoted
from multas_ray.formats.class_maps import ClassMap, Colour, read_mask, voc_colours
from multas_ray.formats.files import Folder, image_ids

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of VOC's mask values 1..20."""
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".JPG",
    ".JPEG",
    ".PNG",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".avif",
    ".jp2",
    ".jfif",
)
"""Of images, in the order in which they are looked for."""
LARGEST_XML = 2**24
"""Bytes: its objects take much more memory."""
ALL = "all"
"""In place of a list's name: every image."""
LABEL_MAP = "labelmap.txt"
"""CVAT's list of classes and their colours, beside JPEGImages."""

Empty = Literal["background", "unlabelled", "skip"]
"""What an image without XML is, of those annotated with boxes: one without objects; not annotated; or left out."""
Items = list[tuple[str, tuple[Task, ...]]]
"""Image ids with the tasks that they are annotated for."""


@dataclass
class Devkit:
    """A folder with JPEGImages, Annotations and SegmentationClass; images and XML may lie in the folder itself."""

    root: Path
    follow_links: bool = False
    """See `Folder`."""
    empty: Empty | None = None
    """None: an image without XML is rejected."""
    remarks: list[str] = field(default_factory=list)
    """On the whole of it, for its user."""

    def __post_init__(self) -> None:
        self.folder = Folder(self.root, self.follow_links)
        self._images = "JPEGImages/" if self.folder.has("JPEGImages") else ""
        self._xml = "Annotations/" if self.folder.has("Annotations") else ""

    def read_list(self, name: str) -> list[str]:
        """The image ids of ImageSets/<folder>/<split>.txt, where name is `<folder>/<split>`; of all images, where it is
        `all`.

        Raises:
            UserError: there is no such file, or it is no text.
        """
        if name == ALL:
            return self._all()
        sets = self.root / "ImageSets"
        file = sets / f"{name}.txt"
        if not file.is_file():
            known = sorted(str(file.relative_to(sets).with_suffix("")) for file in sets.glob("*/*.txt"))
            found = f"there are {', '.join(known)}" if known else f"{sets} holds none"
            raise UserError(f"no VOC split {quoted(name)}: {found}; `{ALL}` in its place takes every image")
        # Lists of single classes have a second column, which says whether the class is present.
        lines = [re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in read_text(file).splitlines()]
        ids = [self._without_suffix(line) for line in lines if line]
        twice = [image_id for image_id, count in Counter(ids).items() if count > 1]
        if twice:
            self.remarks.append(f"{file}: {len(twice)} images stand twice, such as {quoted(twice[0])}; taken once")
        return list(dict.fromkeys(ids))

    def _all(self) -> list[str]:
        base = self.root / self._images
        names = [
            str((Path(folder) / name).relative_to(base))
            for folder, _, files in os.walk(base)
            for name in files
            if name.lower().endswith(SUFFIXES)
        ]
        if not names:
            raise UserError(f"{base}: no image here")
        return image_ids(sorted(names))

    def _without_suffix(self, name: str) -> str:
        return name[: -len(PurePosixPath(name).suffix)] if name.lower().endswith(SUFFIXES) else name

    def choose_classes(self, splits: Mapping[str, Items], names: Sequence[str] | None) -> ClassMap:
        """The classes of the images' annotation, and which of them are kept.

        They are those of labelmap.txt; where there is none, VOC's, if no other is named; else `names`, in the order of
        their mask values, or, where there are no masks, those that the XML names, in alphabetical order.

        Args:
            splits: the images of each split.
            names: the classes to keep; None: all.

        Raises:
            UserError: a name is of no class, or stands twice; or it cannot be known what masks hold.
        """
        if names is not None and len(set(names)) != len(names):
            raise UserError(f"--classes {','.join(names)}: a class stands twice")
        found = self._names(splits)
        masks = any("seg" in tasks for items in splits.values() for _, tasks in items)
        if (self.root / LABEL_MAP).is_file():
            known, colours = _read_label_map(self.root / LABEL_MAP)
            if not _is_of_voc(known, colours):
                _check_known(names, known, f"{LABEL_MAP} has")
                return ClassMap(known, list(names or known), colours)
        if set(names or ()) <= set(CLASSES) and (names or not _other_than(CLASSES, found)):
            return ClassMap(list(CLASSES), list(names or CLASSES), voc_colours(len(CLASSES)))
        if names is not None:
            if not masks:
                _check_known(names, [*found, *CLASSES], "the files have")
            return ClassMap(list(names), list(names), voc_colours(len(names)))
        if masks:
            others = ", ".join(f"{quoted(name)} ({found[name]})" for name in _other_than(CLASSES, found)[:10])
            raise UserError(
                f"{self.root}: objects of classes that are not VOC's: {others}; give all classes with --classes, in "
                f"the order of their values in masks from 1 on, or a {LABEL_MAP}"
            )
        own = sorted(_spellings(found).values())
        self.remarks.append(f"classes taken from the XML: {', '.join(own)}")
        return ClassMap(own, own, {})

    def _names(self, splits: Mapping[str, Items]) -> Counter[str]:
        """What the XML of the images calls objects, and how many there are."""
        names: Counter[str] = Counter()
        for items in splits.values():
            for image_id, tasks in items:
                if "det" in tasks:
                    try:
                        names.update(filter(None, map(_name, self._parse(image_id).findall("object"))))
                    except Reject:
                        continue  # said where the image is read
        return names

    def read_rows(self, items: Items, classes: ClassMap) -> Iterator[Row | Reject]:
        """Read images with the annotation of their tasks."""
        for image_id, tasks in items:
            if self.empty == "skip" and "det" in tasks and not self.folder.has(self._xml_of(image_id)):
                continue
            yield attempt(image_id, partial(self._read_row, image_id, tasks, classes))

    def _read_row(self, image_id: str, tasks: Sequence[Task], classes: ClassMap) -> Row:
        row = Row(image_id, self.folder.read(self._image_of(image_id)), None, None)
        if "seg" in tasks:
            row.has_seg, row.mask = True, read_mask(self._read_mask(image_id), classes, row.notes)
        if "det" in tasks:
            if self.empty and not self.folder.has(self._xml_of(image_id)):
                row.notes[f"images without XML, taken as {self.empty} (--empty)"] += 1
                row.has_det = self.empty == "background"
                return row
            xml = self._parse(image_id)
            row.has_det = True
            row.height, row.width = _size(xml)
            row.boxes, row.labels, row.difficult = _objects(xml, classes.kept)
        return row

    def _image_of(self, image_id: str) -> str:
        """The name of an image's file: with whatever suffix there is."""
        candidates = [f"{self._images}{image_id}{suffix}" for suffix in (*SUFFIXES, "")]
        return next((name for name in candidates if self.folder.has(name)), candidates[0])

    def _xml_of(self, image_id: str) -> str:
        return f"{self._xml}{self._without_suffix(image_id)}.xml"

    def _parse(self, image_id: str) -> Element:
        name = self._xml_of(image_id)
        try:
            data = self.folder.read(name, LARGEST_XML)
        except Reject as reject:
            if reject.reason != "missing file":
                raise
            detail = f"{reject.detail}; is it one without objects? Then --empty background"
            raise Reject("missing annotation", detail) from None
        try:
            xml = SafeXml.fromstring(data)
        except DefusedXmlException as error:
            raise Reject("unsafe XML", f"{name}: {type(error).__name__}") from None
        # The latter: an encoding that does not fit or exist; elements in one another without end.
        except (ParseError, ValueError, LookupError, RecursionError) as error:
            raise Reject("broken XML", f"{name}: {error}") from None
        for element in xml.iter():
            element.tag = element.tag.rpartition("}")[2]
        return xml

    def _read_mask(self, image_id: str) -> bytes:
        try:
            return self.folder.read(f"SegmentationClass/{self._without_suffix(image_id)}.png")
        except Reject as reject:
            reason = "missing mask" if reject.reason == "missing file" else reject.reason
            raise Reject(reason, reject.detail) from None


def _read_label_map(path: Path) -> tuple[list[str], dict[Colour, int]]:
    """Classes in their order, and the value of each colour."""
    names: list[str] = []
    colours: dict[Colour, int] = {}
    for line in decode_text(path.read_bytes(), path).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = line.split(":")
        try:
            red, green, blue = (int(part) for part in rest[0].split(","))
        except (IndexError, ValueError):
            raise UserError(f"{path}: {quoted(line)}: write a class as name:red,green,blue::") from None
        if name.casefold() == "background":
            colours[red, green, blue] = 0
        elif name.casefold() in ("void", "ignore", "ignored"):
            colours[red, green, blue] = IGNORE
        else:
            names.append(name)
            colours[red, green, blue] = len(names)
    if len(set(names)) != len(names) or len(colours) < len(names) or len(names) > IGNORE - 1:
        raise UserError(f"{path}: a class or a colour stands twice, or there are more than {IGNORE - 1} classes")
    colours.setdefault((0, 0, 0), 0)
    return names, colours


def _is_of_voc(names: Sequence[str], colours: Mapping[Colour, int]) -> bool:
    """Whether a list of classes and colours says nothing else than VOC does, of some or all of its classes."""
    voc = voc_colours(len(CLASSES))
    return all(
        colour in voc and (CLASSES[voc[colour] - 1] == names[value - 1] if 0 < value < IGNORE else voc[colour] == value)
        for colour, value in colours.items()
    )


def _check_known(names: Sequence[str] | None, known: Sequence[str], have: str) -> None:
    folded = {name.casefold() for name in known}
    unknown = [name for name in names or () if name.casefold() not in folded]
    if unknown:
        raise UserError(
            f"--classes: no class {', '.join(map(quoted, unknown))}; {have} {', '.join(dict.fromkeys(known))}"
        )


def _other_than(known: Sequence[str], found: Counter[str]) -> list[str]:
    """The names of no known class, the most frequent first."""
    folded = {name.casefold() for name in known}
    return [name for name, _ in found.most_common() if name.casefold() not in folded]


def _spellings(found: Counter[str]) -> dict[str, str]:
    """Case-folded name -> its most frequent spelling."""
    spellings: dict[str, str] = {}
    for name, _ in found.most_common():
        spellings.setdefault(name.casefold(), name)
    return spellings


def _size(xml: Element) -> tuple[int | None, int | None]:
    """Height and width; None where the XML has none that can be (LabelImg writes 0)."""
    try:
        height, width = (int(float(xml.findtext(f"size/{key}", ""))) for key in ("height", "width"))
    except (ValueError, OverflowError):
        return None, None
    return (height, width) if height > 0 and width > 0 else (None, None)


def _name(item: Element) -> str:
    return item.findtext("name", "").strip()


def _objects(xml: Element, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4), labels (N,) and difficult flags (N,) of the objects whose class is kept."""
    labels_of = {name.casefold(): label for label, name in enumerate(classes)}
    boxes, labels, difficult = [], [], []
    for place, item in enumerate(xml.findall("object"), start=1):
        name = _name(item)
        if not name:
            raise Reject("broken annotation", f"object {place} has no name")
        try:
            corners = [float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            corners = [math.nan]
        if not all(map(math.isfinite, corners)):
            raise Reject("broken box", f"object {place}, {quoted(name)}: bndbox needs xmin, ymin, xmax and ymax")
        if name.casefold() in labels_of:
            x1, y1, x2, y2 = corners
            # Corners are 1-based and inclusive: pixel 1 covers 0..1.
            boxes.append((x1 - 1, y1 - 1, x2, y2))
            labels.append(labels_of[name.casefold()])
            difficult.append(item.findtext("difficult", "0").strip().casefold() in ("1", "true"))
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32), np.array(difficult, bool)
