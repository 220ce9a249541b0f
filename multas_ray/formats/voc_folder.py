"""The files of a folder in VOC's layout: lists, images, XML and masks, by the names that tools give them."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeXml

from multas_ray.config import Task
from multas_ray.data.reject import Reject
from multas_ray.documents import decode_text, read_text
from multas_ray.errors import UserError, quoted
from multas_ray.formats.files import Folder, image_ids
from multas_ray.formats.listing import SUFFIXES, list_images

MASKS = "SegmentationClass"
"""Folder of masks, each with the name of its image."""
LARGEST_XML = 2**24
"""Largest size of an XML file in bytes: its objects take much more memory."""
LABEL_MAP = "labelmap.txt"
"""CVAT's list of classes and their colours, beside JPEGImages."""
CLASS_TABLE = "_classes.csv"
"""Roboflow's list of classes and their values, beside its images and masks."""
MASK_SUFFIX = "_mask.png"
"""End of the name of a mask that lies beside its image, in Roboflow's export."""
PARTS = {"train": "train", "val": "valid", "test": "test"}
"""Splits, and the folders that Roboflow's export has for them."""
ALL = "all"
"""Stands for every image, in place of a list's name."""


class VocImage(NamedTuple):
    """An image of a list."""

    image_id: str
    tasks: tuple[Task, ...]
    """The tasks that it is annotated for."""


@dataclass(frozen=True)
class VocFolder:
    """A folder with JPEGImages, Annotations and SegmentationClass.

    Images may lie in the folder itself, with XML beside them, or with masks beside them and a table of their values.
    """

    root: Path
    follow_links: bool = False
    """Whether symbolic links may lead out of the folder."""

    def read_list(self, name: str, remarks: list[str]) -> list[str]:
        """The image ids of a list, ImageSets/<name>.txt, or of all images.

        Args:
            name: `<folder>/<split>`, or `all`.
            remarks: for the user, added to.

        Raises:
            UserError: there is no such file, or it is no text.
        """
        if name == ALL:
            if not (ids := self.list_images(remarks)):
                raise UserError(f"{self.root / self._images}: no image here")
            return ids
        sets = self.root / "ImageSets"
        file = sets / f"{name}.txt"
        if not file.is_file():
            known = sorted(str(file.relative_to(sets).with_suffix("")) for file in sets.glob("*/*.txt"))
            present = f"there are {', '.join(known)}" if known else f"{sets} holds none"
            raise UserError(f"no VOC split {quoted(name)}: {present}; `{ALL}` in its place takes every image")
        # Lists of single classes have a second column, which says whether the class is present.
        lines = [re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in read_text(file).splitlines()]
        ids = [_without_suffix(line) for line in lines if line]
        twice = [image_id for image_id, count in Counter(ids).items() if count > 1]
        if twice:
            remarks.append(f"{file}: {len(twice)} images stand twice, such as {quoted(twice[0])}; taken once")
        return list(dict.fromkeys(ids))

    def list_images(self, remarks: list[str], part: str = "") -> list[str]:
        """The ids of all images, or of those in a folder among them.

        Args:
            remarks: for the user, added to.
            part: name of the folder.
        """
        names = list_images(Folder(self.root / self._images, self.follow_links), part, remarks)
        return image_ids([name for name in names if not (self.tables and name.endswith(MASK_SUFFIX))])

    @cached_property
    def parts(self) -> dict[str, str]:
        """Splits of Roboflow's export, and their folders; none in any other folder."""
        return {split: name for split, name in PARTS.items() if not self._images and (self.root / name).is_dir()}

    @cached_property
    def annotated(self) -> tuple[Task, ...]:
        """The tasks that the folder has annotation of: boxes, masks, or both."""
        has_masks = bool(self.tables) or any((self.root / MASKS).rglob("*.png"))
        has_boxes = any((self.root / self._xml).rglob("*.xml"))
        found: dict[Task, bool] = {"det": has_boxes, "seg": has_masks}
        return tuple(task for task, present in found.items() if present)

    @cached_property
    def tables(self) -> dict[str, str]:
        """The text of Roboflow's tables of classes, by their names: the folder's own, or one in each of its parts.

        Raises:
            UserError: one cannot be read, or is no text.
        """
        names = [CLASS_TABLE, *(f"{part}/{CLASS_TABLE}" for part in self.parts.values())]
        return {name: self.read_text(name) for name in names if self._folder.has(name)}

    @cached_property
    def label_map(self) -> str | None:
        """The text of CVAT's list of classes; None where there is none.

        Raises:
            UserError: it cannot be read, or is no text.
        """
        return self.read_text(LABEL_MAP) if self._folder.has(LABEL_MAP) else None

    def read_text(self, name: str) -> str:
        """The text of a file on the whole of the folder.

        Raises:
            UserError: it cannot be read, or is no text.
        """
        try:
            return decode_text(self._folder.read(name, LARGEST_XML), self.root / name)
        except Reject as reject:
            raise UserError(f"{reject.reason}: {reject.detail}") from None

    def has_xml(self, image_id: str) -> bool:
        """Whether there is the XML of an image."""
        return self._folder.has(self._xml_name(image_id))

    def read_image(self, image_id: str) -> bytes:
        """The file of an image, with whatever suffix there is.

        Raises:
            Reject: it cannot be read; see `Folder.read`.
        """
        candidates = [f"{self._images}{image_id}{suffix}" for suffix in (*SUFFIXES, "")]
        return self._folder.read(next((name for name in candidates if self._folder.has(name)), candidates[0]))

    def read_xml(self, image_id: str) -> Element:
        """The XML of an image, its elements without namespaces.

        Raises:
            Reject: it cannot be read (see `Folder.read`), or it is broken or unsafe.
        """
        name = self._xml_name(image_id)
        try:
            data = self._folder.read(name, LARGEST_XML)
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

    def read_mask(self, image_id: str) -> bytes:
        """The file of an image's mask.

        Raises:
            Reject: it cannot be read; see `Folder.read`.
        """
        beside = f"{self._images}{_without_suffix(image_id)}{MASK_SUFFIX}"
        try:
            return self._folder.read(beside if self.tables else f"{MASKS}/{_without_suffix(image_id)}.png")
        except Reject as reject:
            reason = "missing mask" if reject.reason == "missing file" else reject.reason
            raise Reject(reason, reject.detail) from None

    @cached_property
    def _folder(self) -> Folder:
        return Folder(self.root, self.follow_links)

    @cached_property
    def _images(self) -> str:
        return "JPEGImages/" if self._folder.has("JPEGImages") else ""

    @cached_property
    def _xml(self) -> str:
        return "Annotations/" if self._folder.has("Annotations") else ""

    def _xml_name(self, image_id: str) -> str:
        return f"{self._xml}{_without_suffix(image_id)}.xml"


def object_name(item: Element) -> str:
    """The class that the XML of an object names, as it is written; empty where it names none."""
    return item.findtext("name", "").strip()


def _without_suffix(name: str) -> str:
    return name[: -len(PurePosixPath(name).suffix)] if name.lower().endswith(SUFFIXES) else name
