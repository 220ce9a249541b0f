"""The Parquet files of a folder by split, and the row groups of each, by their footers alone."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from multas_ray.data.reject import Reject
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.formats.files import Folder
from multas_ray.formats.huggingface_classes import stored_names
from multas_ray.formats.huggingface_columns import Columns
from multas_ray.parquet import check_types, read_parquet
from multas_ray.storage import StoragePath

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Splits by the words that stand for them in the names of files and folders."""
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
"""Name of a file, without suffix, that `datasets` writes for a part of a split."""
LARGEST_GROUP = 2**31 - 1
"""Largest size of a row group in bytes: a whole one is read, and Arrow reads no larger column of structs."""


class RowGroup(NamedTuple):
    """A row group of a Parquet file."""

    file: str
    """The file's path below the folder."""
    number: int
    first: int
    """Number in the file of its first row."""
    rows: int
    """How many it has."""


@dataclass(frozen=True)
class ParquetFile:
    """What the footer of a Parquet file says."""

    name: str
    """Its path below the folder."""
    schema: pa.Schema
    metadata: Mapping[bytes, bytes]
    groups: tuple[RowGroup, ...]


def find_files(folder: Folder, remarks: list[str]) -> dict[str, list[ParquetFile]]:
    """Find the Parquet files of a folder that have rows, and read their footers.

    Args:
        folder: searched with its sub-folders, but for hidden ones.
        remarks: for the user, added to.

    Returns:
        Files by split, `train` first, in the order of their names.

    Raises:
        UserError: there are none, or one is broken or leads out of the folder.
    """
    splits: defaultdict[str, list[ParquetFile]] = defaultdict(list)
    others: list[ParquetFile] = []
    names = _names(folder.root)
    _check_one_set(folder.root, names)
    for name in names:
        file, split = _read_footer(folder, name), split_of(name)
        if file.groups:
            (splits[split] if split else others).append(file)
    if others and not splits:
        remarks.append(f"no file's name tells a split, such as {quoted(others[0].name)}: all are taken for train")
        return {"train": others}
    if others:
        remarks.append(f"{len(others)} files left out, whose names tell no split, such as {quoted(others[0].name)}")
    if not splits:
        raise UserError(f"{folder.root}: no Parquet file with rows here, such as data/train-00000-of-00001.parquet")
    order = list(dict.fromkeys(SPLITS.values()))
    return dict(sorted(splits.items(), key=lambda item: (order.index(item[0]) if item[0] in order else 3, item[0])))


def _check_one_set(root: Path, names: Sequence[str]) -> None:
    """Refuse files of several configurations of a data set, which often hold the same images.

    Raises:
        UserError: what is left of the files' folders differs, once the words that stand for splits are taken away.
    """
    words = {*SPLITS, "data"}
    folders = dict.fromkeys(
        "/".join(part for part in PurePosixPath(name).parent.parts if part.lower() not in words) for name in names
    )
    if len(folders) > 1:
        shown = ", ".join(quoted(each or ".") for each in folders)
        raise UserError(
            f"{root}: files in the folders {shown}: are these several configurations of one data set? Name one with "
            "--root; further ones are added by --add"
        )


def split_of(name: str) -> str | None:
    """The split that a file's path tells; None where it tells none.

    It is told by the name that `datasets` gives the parts of a split, by a word in the file's name, or by one in the
    names of the folders, the last of them first.
    """
    parts = PurePosixPath(name).with_suffix("").parts
    if shard := SHARD.fullmatch(parts[-1]):
        return SPLITS.get(shard[1].lower(), shard[1])
    words = [word for part in reversed(parts) for word in re.split(r"[-._ \d]+", part.lower())]
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def check_files(folder: Folder, splits: Mapping[str, Sequence[ParquetFile]], columns: Columns) -> list[str] | None:
    """Check that all files have the columns.

    Returns:
        The names of the categories by number, as the files have them; None where they do not.

    Raises:
        UserError: one lacks a column, or two give a category different names.
    """
    named: list[str] | None = None
    for file in (file for files in splits.values() for file in files):
        check_types(file.schema, StoragePath(folder.root / file.name), columns.schema)
        if columns.objects is None:
            continue
        found = stored_names(file.metadata, columns.objects, columns.category, file.name)
        if found and named and found != named:
            differ = next(((a, b) for a, b in zip_longest(found, named) if a != b))
            raise UserError(
                f"{file.name}: a class is {quoted(differ[0])} here, and {quoted(differ[1])} in the files before it: "
                "are these several data sets? Prepare one folder at a time"
            )
        named = named or found
    return named


def _names(root: Path) -> list[str]:
    """The paths of the Parquet files below a folder, sorted; hidden ones are left out, as those of a hub's cache."""
    names = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in files if name.endswith(".parquet") and not name.startswith(".")]
        names += [path.relative_to(root).as_posix() for path in paths if path.name.isprintable()]
    return sorted(names)


def _read_footer(folder: Folder, name: str) -> ParquetFile:
    try:
        path = folder.check(name)
        return read_parquet(StoragePath(path), pa.schema([]), lambda parquet: _footer(parquet, name), groups=())
    except Reject as reject:
        raise UserError(f"{reject.reason}: {reject.detail}") from None
    except OSError as error:
        raise UserError(f"{folder.root / name}: cannot be read ({first_line(error)})") from None


def _footer(parquet: pq.ParquetFile, name: str) -> ParquetFile:
    groups, first = [], 0
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        if group.total_byte_size > LARGEST_GROUP:
            raise UserError(
                f"{name}: its row group {number} has {group.total_byte_size / 1e9:.1f} GB, and is read as a whole: "
                "write the file anew with row groups of 100 rows or so"
            )
        if group.num_rows:
            groups.append(RowGroup(name, number, first, group.num_rows))
        first += group.num_rows
    return ParquetFile(name, parquet.schema_arrow, parquet.metadata.metadata or {}, tuple(groups))
