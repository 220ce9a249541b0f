"""Where images to predict on come from: a folder, a glob, Parquet files, or a data set."""

import glob
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow import fs

from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.storage import StoragePath

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
COLUMNS = ["image_id", "image"]
"""Of a Parquet file: a name, and the encoded image."""
COLUMNS_ARE = [pa.string(), pa.binary()]


@dataclass(frozen=True)
class Images:
    """Images to predict on."""

    rows: ray.data.Dataset
    """`image_id` (str) with either `image` (encoded bytes), or `path` (where they are) and `file_name` (the path below
    the source)."""
    count: int


def find_images(source: str, split: str) -> Images:
    """The images of a source.

    Args:
        source: a folder that is searched with its subfolders, a glob, an image, Parquet files (a file, a folder or a
            glob) with columns `image_id` and `image`, or a data set folder.
        split: of a data set.

    Raises:
        UserError: there are none.
    """
    if glob.has_magic(source) and "://" not in source and not Path(source).exists():
        # Not pathlib: it takes no absolute pattern.
        base, found = _base(source), sorted(glob.glob(source, recursive=True))  # noqa: PTH207
        paths = [StoragePath(name) for name in found if Path(name).is_file()]
    elif (StoragePath(source) / "dataset.json").exists():
        if split not in read_info(source).splits:
            raise UserError(f"{source}: no split '{split}'; it has {', '.join(read_info(source).splits)}")
        base, paths = source, _files(StoragePath(source) / split)
    else:
        base, paths = source, _files(StoragePath(source))
    shards = [path for path in paths if path.name.endswith(".parquet")]
    if shards:
        return _from_parquet(shards)
    paths = [path for path in paths if path.name.lower().endswith(SUFFIXES)]
    if not paths:
        raise UserError(f"{source}: no image ({', '.join(SUFFIXES)}) and no Parquet file here")
    rows = [
        {"image_id": name, "file_name": file_name, "path": path.uri}
        for path, (name, file_name) in zip(paths, _names(paths, StoragePath(base)), strict=True)
    ]
    return Images(ray.data.from_items(rows), len(rows))


def _from_parquet(shards: list[StoragePath]) -> Images:
    count = 0
    for shard in shards:
        try:
            with shard.open() as stream, pq.ParquetFile(stream) as parquet:
                count += parquet.metadata.num_rows
                columns = {field.name: field.type for field in parquet.schema_arrow}
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{shard}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
        if [columns.get(name) for name in COLUMNS] != COLUMNS_ARE:
            has = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
            raise UserError(f"{shard}: has columns {has}; image_id (string) and image (binary) are needed")
    paths = [shard.path for shard in shards]
    return Images(ray.data.read_parquet(paths, filesystem=shards[0].filesystem, columns=COLUMNS), count)


def _files(place: StoragePath) -> list[StoragePath]:
    """A file, or all of a folder and its subfolders, in order of their names."""
    kind = place.filesystem.get_file_info(place.path).type
    if kind == fs.FileType.File:
        return [place]
    entries = place.filesystem.get_file_info(fs.FileSelector(place.path, recursive=True, allow_not_found=True))
    names = sorted(entry.path for entry in entries if entry.type == fs.FileType.File)
    return [place / name.removeprefix(f"{place.path}/") for name in names]


def _base(pattern: str) -> str:
    """The folder of a pattern below which its matches differ."""
    fixed: list[str] = []
    for part in PurePosixPath(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return str(PurePosixPath(*fixed))


def _names(paths: Iterable[StoragePath], base: StoragePath) -> list[tuple[str, str]]:
    """Each image's path below the base without its suffix (with it, where two would be alike), and with it."""
    whole = [path.path.removeprefix(f"{base.path}/") if path.path != base.path else path.name for path in paths]
    short = [str(PurePosixPath(name).with_suffix("")) for name in whole]
    count = Counter(short)
    return [(stem if count[stem] == 1 else name, name) for stem, name in zip(short, whole, strict=True)]
