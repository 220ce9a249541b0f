"""Files and folders on any filesystem that pyarrow knows: local paths, s3://, gs:// and others."""

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Union
from urllib.parse import urlsplit
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from multas_ray.errors import UserError, quoted

Location = Union[str, os.PathLike[str], "StoragePath"]
"""Local path, or URI."""


class StoragePath:
    """Path of a file or folder, used much like `pathlib.Path`. A local one is an `os.PathLike` too."""

    def __init__(self, path: Location) -> None:
        """Parse a path, and find its filesystem.

        Args:
            path: a local path, or a URI such as s3://bucket/folder; options of its filesystem may follow as a query
                (?endpoint_override=...). Credentials come from the environment.

        Raises:
            UserError: `path` is not a path, the URI holds credentials, or its filesystem cannot be used.
        """
        self.filesystem: fs.FileSystem
        self.path: str
        self._uri: str
        self._query: str
        if isinstance(path, StoragePath):
            self.filesystem, self.path, self._uri, self._query = path.filesystem, path.path, path._uri, path._query
        elif "://" in str(path):
            self.filesystem, self.path = _filesystem(str(path))
            self._uri, mark, query = str(path).partition("?")
            self._uri, self._query = self._uri.rstrip("/"), mark + query
        else:
            self.filesystem = fs.LocalFileSystem()
            try:
                self._uri = self.path = str(Path(path).expanduser().resolve())
            except (OSError, RuntimeError, ValueError) as error:  # no such user's home; a NUL
                raise UserError(f"{quoted(str(path))}: not a path ({error})") from None
            self._query = ""

    def __truediv__(self, name: str) -> "StoragePath":
        """Return the path of a file or folder inside this folder."""
        child = StoragePath(self)
        child.path, child._uri = f"{self.path}/{name}", f"{self._uri}/{name}"
        return child

    def with_name(self, name: str) -> "StoragePath":
        """Return the path of a file or folder beside this one."""
        other = StoragePath(self)
        other.path, other._uri = (f"{path.rpartition('/')[0]}/{name}" for path in (self.path, self._uri))
        return other

    def __str__(self) -> str:
        """Return the path for people to read: without the options of the filesystem."""
        return self._uri

    @property
    def uri(self) -> str:
        """Name that means the same in any process: an absolute local path, or a URI with its options."""
        return self._uri + self._query

    def __repr__(self) -> str:
        """Return the path for debugging."""
        return f"StoragePath({self._uri!r})"

    def __eq__(self, other: object) -> bool:
        """Compare path and filesystem."""
        return isinstance(other, StoragePath) and (self._uri, self.filesystem) == (other._uri, other.filesystem)

    def __hash__(self) -> int:
        """Hash the path."""
        return hash(self._uri)

    def __fspath__(self) -> str:
        """Return the local path.

        Raises:
            TypeError: the path is not local.
        """
        if not self.local:
            raise TypeError(f"{self} is not a local path")
        return self.path

    @property
    def local(self) -> bool:
        """Whether the path is on a filesystem of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    def exists(self) -> bool:
        """Whether the file or folder exists."""
        if self.local:
            # Path.exists raises where a name is too long, which simply does not exist.
            return os.path.exists(self.path)  # noqa: PTH110
        return bool(self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound)

    def modified(self) -> float:
        """Time of the last write in seconds since 1970."""
        return float(self.filesystem.get_file_info(self.path).mtime_ns / 1e9)

    def names(self) -> list[str]:
        """List the names in a folder, sorted; none if it does not exist."""
        entries = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(entry.base_name for entry in entries)

    def open(self) -> pa.NativeFile:
        """Open the file for reading and seeking.

        Raises:
            OSError: the file does not exist, cannot be read, or has no end: a device, or a pipe.
        """
        if self.local and not stat.S_ISREG(Path(self.path).stat().st_mode):
            raise OSError("a folder, device or pipe, not a file")
        return self.filesystem.open_input_file(self.path)

    def create(self) -> pa.NativeFile:
        """Create or truncate the file for writing; its folder is made too.

        Raises:
            OSError: the file cannot be written.
        """
        self.filesystem.create_dir(self.path.rpartition("/")[0])
        return self.filesystem.open_output_stream(self.path)

    def read_bytes(self) -> bytes:
        """Read the whole file; errors as `open`."""
        with self.open() as stream:
            return bytes(stream.read())

    def read_text(self) -> str:
        """Read the whole file as UTF-8; errors as `open`."""
        return self.read_bytes().decode()

    @contextmanager
    def writing(self) -> Iterator[pa.NativeFile]:
        """Open the file for writing so that it is never seen half written: it is replaced at the end of the block.

        Raises:
            OSError: the file cannot be written.
        """
        # Object stores show a file only when it is whole.
        target = StoragePath(f"{self.path}.{uuid4().hex}.tmp") if self.local else self
        with target.create() as stream:
            yield stream
        if self.local:
            Path(target).replace(self)

    def write_bytes(self, data: bytes | memoryview | pa.Buffer) -> None:
        """Write a file that is never seen half written; errors as `create`."""
        with self.writing() as stream:
            stream.write(data)

    def write_text(self, text: str) -> None:
        """Write a file of UTF-8 that is never seen half written; errors as `create`."""
        self.write_bytes(text.encode())

    def append_text(self, text: str) -> None:
        """Append to a file, or create it. Where storage cannot append, the whole file is written anew."""
        if self.local:
            Path(self).parent.mkdir(parents=True, exist_ok=True)
            with Path(self).open("a") as stream:
                stream.write(text)
        else:
            self.write_text((self.read_text() if self.exists() else "") + text)

    def delete(self) -> None:
        """Delete the file, or the folder with all that is in it, if it exists."""
        kind = self.filesystem.get_file_info(self.path).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(self.path)


def read_lines(file: StoragePath) -> list[dict[str, Any]]:
    """Read the objects of a file of JSON lines; none if there is no file.

    Lines that are not JSON objects are skipped: a killed writer leaves its last line cut short.
    """
    values = []
    for line in file.read_bytes().split(b"\n") if file.exists() else ():
        # Not JSON, not UTF-8, or thousands of lists in one another.
        with suppress(ValueError, RecursionError):
            values.append(json_value(line.decode()))
    return [value for value in values if isinstance(value, dict)]


def json_value(text: str) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: `text` is not JSON, or escapes half of a surrogate pair, which no file can hold.
        RecursionError: thousands of lists or objects are nested in one another.
    """
    value = json.loads(text)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


@lru_cache
def _filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    shown = uri.partition("?")[0]
    if "@" in urlsplit(uri).netloc:
        raise UserError(
            f"{shown.split('://')[0]}://…: credentials in a URI end up in logs; set them in the environment"
        )
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{shown}: not a place that pyarrow can use ({str(error).splitlines()[0]})") from None
    return filesystem, path.rstrip("/")
