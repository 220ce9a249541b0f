"""Files that an annotation names: whatever it says, only regular ones below the folder that the user named are read."""

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from multas_ray.data.reject import Reject
from multas_ray.formats.flags import Names
from multas_ray.formats.source import Options

LARGEST = 2**30
"""Largest size of a file that is read, in bytes."""


class FolderOptions(Options):
    """The options of a format that reads files below a folder."""

    follow_links: bool = False
    """read files to which links lead out of the folder"""


class FileOptions(FolderOptions):
    """The options of a format that reads files below a folder, of some of their classes or all."""

    classes: Names | None = None
    """comma-separated; boxes of others are dropped, their pixels ignored"""


@dataclass(frozen=True)
class Folder:
    """A folder whose files are read by the names that an annotation gives them."""

    root: Path
    follow_links: bool = False
    """Whether symbolic links may lead out of the folder."""

    def read(self, name: str, largest: int = LARGEST) -> bytes:
        """The bytes of a file.

        Args:
            name: its path below the folder, with slashes; where no such file is there, with the backslashes of Windows.
            largest: bytes.

        Raises:
            Reject: there is no such file, it is not below the folder, or it is not a regular one.
        """
        path = self.check(name)
        try:
            with path.open("rb") as file:
                data = file.read(largest + 1)
        except OSError as error:
            raise Reject("missing file", f"{path}: {error.strerror}") from None
        if len(data) > largest:
            raise Reject("too large", f"{path}: more than {largest >> 20} MB")
        return data

    def check(self, name: str) -> Path:
        """The path of a file.

        Raises:
            Reject: as `read`.
        """
        path = self._place(name)
        try:
            # A FIFO would be waited for, and some devices do things when they are opened.
            if not stat.S_ISREG(path.stat().st_mode):
                raise Reject("not a regular file", f"{path}: a folder, device or pipe")
        except OSError as error:
            raise Reject("missing file", f"{path}: {error.strerror}{self._hint(name)}") from None
        except ValueError as error:  # a NUL in the name
            raise Reject("missing file", f"{name!r}: {error}") from None
        return path

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        try:
            return (self.root / name).exists()
        except (OSError, ValueError):
            return False

    def _hint(self, name: str) -> str:
        """Words on where the file may be instead; empty where it is not there either."""
        last = name.replace("\\", "/").rpartition("/")[2].partition("?")[0]
        return f"; {self.root / last} is there: is it that one?" if last and last != name and self.has(last) else ""

    def _place(self, name: str) -> Path:
        if not self.has(name) and "\\" in name:
            name = name.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/"):
            raise Reject("outside its folder", f"{name!r}: only files below {self.root} are read{self._hint(name)}")
        path = self.root / name
        if self.follow_links:
            return path
        try:
            real, root = os.path.realpath(path), os.path.realpath(self.root)
        except (OSError, ValueError):
            return path  # what is wrong with it is said where it is opened
        if os.path.commonpath([real, root]) != root:
            raise Reject("outside its folder", f"{path}: a link to {real}; --follow-links reads such files")
        return path


def image_ids(names: Iterable[str]) -> list[str]:
    """Ids of images: each name, a path below a folder, without its suffix; with it where two would else be alike."""
    whole = [str(PurePosixPath(name.replace("\\", "/"))) for name in names]
    short = [str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name for name in whole]
    count = Counter(short)
    return [stem if count[stem] == 1 else name for stem, name in zip(short, whole, strict=True)]
