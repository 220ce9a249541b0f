"""The images that a data.yaml names, and the names of their labels and masks: listed, and not opened."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from multas_ray.data.reject import Reject
from multas_ray.documents import decode_text
from multas_ray.errors import UserError, quoted
from multas_ray.formats.files import Folder, image_ids
from multas_ray.formats.listing import list_images
from multas_ray.formats.yolo_file import YoloFile

IMAGES = "/images/"
"""The last of these in an image's path is where its label's path has `labels`."""


class YoloImage(NamedTuple):
    """An image of a split."""

    image_id: str
    name: str
    """Its path below the data set's folder."""


@dataclass(frozen=True)
class YoloFolder:
    """The folder that a data.yaml is of. What lies elsewhere is not read, whatever the file or its lists say."""

    file: Path
    """The data.yaml, for messages."""
    files: Folder

    def list_split(self, name: str, entries: Sequence[str], remarks: list[str]) -> list[YoloImage]:
        """List the images of a split.

        Args:
            name: of the split.
            entries: folders, or text files that list images, a path each line.
            remarks: for the user, added to.

        Raises:
            UserError: an entry is not there, leads out of the folder, or names no image.
        """
        names = [image for entry in entries for image in self._list_entry(name, entry, remarks)]
        if not names:
            raise UserError(f"{self.file}: {name}: no image in {', '.join(map(quoted, entries[:3]))}")
        twice = [image for image, count in Counter(names).items() if count > 1]
        if twice:
            remarks.append(f"{name}: {len(twice)} images stand twice, such as {quoted(twice[0])}; taken once")
        names = list(dict.fromkeys(names))
        return [YoloImage(*both) for both in zip(image_ids(names), names, strict=True)]

    def _list_entry(self, split: str, entry: str, remarks: list[str]) -> list[str]:
        where = f"{self.file}: {split}: {quoted(entry)}"
        name = self._below(entry)
        if name is None:
            raise UserError(
                f"{where} leads out of {self.files.root}, the folder that is read; let `path` name one that holds all"
            )
        if not self.files.has(name):
            raise UserError(f"{where}: no such file or folder in {self.files.root}")
        if (self.files.root / name).is_dir():
            return list_images(self.files, name, remarks)
        try:
            text = decode_text(self.files.read(name), self.files.root / name)
        except Reject as reject:
            raise UserError(f"{where}: {reject.reason}: {reject.detail}") from None
        parent = str(PurePosixPath(name).parent)
        return [self._listed(line.strip(), parent) for line in text.splitlines() if line.strip()]

    def _below(self, entry: str) -> str | None:
        """The path of an entry below the folder; None where it leads out of it."""
        entry = entry.replace("\\", "/")
        # Roboflow's ../train/images means a folder beside the file.
        places = (_relative(place, self.files.root) for place in (entry, entry.removeprefix("../")))
        return next((place for place in places if place is not None), None)

    def _listed(self, line: str, parent: str) -> str:
        """The path of an image that a list in the folder `parent` names.

        Where it leads out of the folder, it stays as it is, to be rejected where it is read.
        """
        line = line.replace("\\", "/")
        if line.startswith("/"):
            return _relative(line, self.files.root) or line
        # `./a.jpg` lies beside the list.
        places = (parent, ".") if line.startswith("./") else (".", parent)
        candidates = [os.path.normpath(f"{place}/{line}") for place in places]
        return next((name for name in candidates if self.files.has(name)), candidates[0])


def open_folder(file: Path, content: YoloFile, follow_links: bool) -> YoloFolder:
    """The folder of a data.yaml: `path`, seen from the file or from the working directory, or else the file's own.

    Raises:
        UserError: there is no such folder.
    """
    named = (content.path or ".").replace("\\", "/")
    for root in (file.parent / named, Path(named)):
        if Folder(root).has("."):
            return YoloFolder(file, Folder(root, follow_links))
    raise UserError(
        f"{file}: path: {quoted(named)} is no folder, seen from the file or from here; correct it, or leave it out "
        "where the images lie below the file's own folder"
    )


def label_name(image: str) -> str:
    """The path of an image's label file: the last folder `images` of its own is `labels` there."""
    return f"{counterpart(image, 'labels')}.txt"


def counterpart(image: str, folder: str) -> str:
    """The path of an image, without its suffix, with a folder in the place of the last `images` in it."""
    head, found, tail = f"/{image}".rpartition(IMAGES)
    moved = f"{head}/{folder}/{tail}" if found else tail
    return moved.removesuffix(PurePosixPath(image).suffix).removeprefix("/")


def _relative(path: str, root: Path) -> str | None:
    """A path, seen from the root or absolute, as one below the root; None where it leads out."""
    try:
        below = os.path.relpath(root / path, root)
    except ValueError:
        return None
    return None if below == ".." or below.startswith("../") else below
