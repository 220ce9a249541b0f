"""Images below a folder, listed by their names: none is opened."""

import os
from pathlib import Path

from multas_ray.errors import UserError
from multas_ray.formats.files import Folder

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
"""Suffixes of images, in the order in which they are looked for."""


def list_images(folder: Folder, below: str, remarks: list[str]) -> list[str]:
    """The images in a sub-folder of a folder, and in those below it; hidden ones are left out.

    Args:
        folder: that holds the files. Where its links may not be followed, sub-folders that are links are left out.
        below: path of the sub-folder below it; empty for the folder itself.
        remarks: for the user, added to.

    Returns:
        Paths below the folder, with slashes, sorted.

    Raises:
        UserError: a sub-folder cannot be read.
    """
    names: list[str] = []
    linked: list[str] = []
    entered: set[str] = set()
    for path, folders, files in os.walk(folder.root / below, onerror=_refuse, followlinks=folder.follow_links):
        real = os.path.realpath(path)
        if real in entered:  # a link to a folder above it
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked += [name for name in folders if Path(path, name).is_symlink()]
        parent = os.path.relpath(path, folder.root)
        names += [
            os.path.normpath(f"{parent}/{name}")
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    readable = [name for name in names if name.encode(errors="ignore").decode() == name]
    if len(readable) < len(names):
        remarks.append(
            f"{folder.root / below}: {len(names) - len(readable)} images left out: their names are not UTF-8"
        )
    if linked and not folder.follow_links:
        remarks.append(
            f"{folder.root / below}: {len(linked)} sub-folders that are links left out, such as {linked[0]}; "
            "--follow-links reads them"
        )
    return sorted(readable)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})")
