"""Sources of images to predict on: a folder, a glob, Parquet files, or a data set."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow import fs

from multas_ray.data.reject import Reject
from multas_ray.data.schema import read_info
from multas_ray.deploy.outputs import safe_name
from multas_ray.deploy.workers import CPUS_PER_TASK
from multas_ray.errors import UserError, first_line, one_line, quoted
from multas_ray.formats.files import Folder, image_ids
from multas_ray.parquet import holds
from multas_ray.storage import StoragePath

OTHERS = (
    ".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".html", ".log", ".ini", ".py", ".pdf",
    ".zip", ".tar", ".gz", ".npy", ".npz", ".pt", ".pth", ".onnx", ".safetensors", ".mp4", ".mov", ".avi", ".mkv",
    ".db", ".ds_store", ".parquet",
)  # fmt: skip
"""Endings of the names of files that are not tried as images. All others are: names lie, and new formats come."""
COLUMNS = ["image_id", "image"]
"""Columns of a Parquet file: a name, and the encoded image (also as Hugging Face's {bytes, path})."""
ROWS = 16
"""Number of rows of a Parquet file that are read at a time."""


@dataclass(frozen=True)
class Images:
    """Images to predict on."""

    rows: ray.data.Dataset
    """Rows with `image_id` and either `image` (encoded bytes) and `problem` (the reason where there are none), or
    `path` (file of the image) and `file_name` (its path below the source)."""
    count: int
    """Number of images."""
    left_out: list[Reject] = field(default_factory=list)
    """Files that are not tried."""


def find_images(source: str, split: str, follow_links: bool = False) -> Images:
    """Find the images of a source.

    Args:
        source: a folder that is searched with its subfolders, a glob, an image, Parquet files (a file, a folder or a
            glob) with columns `image_id` and `image`, or a data set folder.
        split: split of a data set.
        follow_links: whether links may lead out of the folder.

    Raises:
        UserError: there are no images, or two have the same name.
    """
    left_out: list[Reject] = []
    if glob.has_magic(source) and "://" not in source and not _exists(source):
        # Not pathlib: it takes no absolute pattern.
        base, matches = _base(source), sorted(glob.glob(source, recursive=True))  # noqa: PTH207
        paths = [StoragePath(name) for name in matches if Path(name).is_file()]
    elif (StoragePath(source) / "dataset.json").exists():
        if split not in read_info(source).splits:
            raise UserError(f"{source}: no split {quoted(split)}; it has {', '.join(read_info(source).splits)}")
        base, paths = source, _files(StoragePath(source) / split, follow_links, left_out)
    else:
        base, paths = source, _files(StoragePath(source), follow_links, left_out)
    shards = [path for path in paths if path.name.endswith(".parquet")]
    images = [path for path in paths if not shards and not path.name.lower().endswith(OTHERS)]
    tried = {*map(str, shards), *map(str, images)}
    others = [path for path in paths if str(path) not in tried]
    left_out += [Reject("not tried", "no image by its name", _below(path, StoragePath(base))) for path in others]
    if shards:
        return _from_parquet(shards, left_out)
    if not images:
        raise UserError(f"{source}: no image and no Parquet file here ({len(left_out)} other files)")
    names = [_below(path, StoragePath(base)) for path in images]
    ids = image_ids(names)
    check_names(ids, source)
    rows = [
        {"image_id": image_id, "file_name": name, "path": path.uri}
        for image_id, name, path in zip(ids, names, images, strict=True)
    ]
    return Images(ray.data.from_items(rows), len(rows), left_out)


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False


def _from_parquet(shards: list[StoragePath], left_out: list[Reject]) -> Images:
    ids: list[str] = []
    groups: list[dict[str, Any]] = []
    for shard in shards:
        names, count = read_names(shard)
        ids += names
        groups += [{"path": shard.uri, "group": group} for group in range(count)]
    check_names(ids, ", ".join(map(str, shards[:3])))
    # Ray Data's own reader would end the job, in hundreds of lines, where one page of a file is broken.
    rows = ray.data.from_items(groups).map_batches(
        read_groups, batch_size=1, batch_format="pyarrow", num_cpus=CPUS_PER_TASK
    )
    return Images(rows, len(ids), left_out)


def read_names(shard: StoragePath) -> tuple[list[str], int]:
    """Read the names of the images of a Parquet file.

    Returns:
        Names that are not null, and the number of row groups. Nulls are rejected row by row, later.

    Raises:
        UserError: the file is broken, or has other columns.
    """
    try:
        with shard.open() as stream, pq.ParquetFile(stream) as parquet:
            _check_columns(parquet.schema_arrow, shard)
            names = _names(parquet.read(columns=["image_id"]))
            return [name for name in names if name is not None], parquet.num_row_groups
    # A ValueError: text that is not UTF-8.
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{shard}: not a readable Parquet file ({first_line(error)})") from None


def read_groups(groups: pa.Table) -> Iterator[pa.Table]:
    """Read some row groups, a few rows at a time.

    Where a row group cannot be read to its end, its remaining rows have a `problem` in place of their image.

    Args:
        groups: columns `path` and `group`.

    Yields:
        Tables with the columns of `Images.rows`.
    """
    for item in groups.to_pylist():
        shard, group, done = StoragePath(item["path"]), item["group"], 0
        try:
            with shard.open() as stream, pq.ParquetFile(stream) as parquet:
                _check_columns(parquet.schema_arrow, shard)
                for batch in parquet.iter_batches(ROWS, row_groups=[group], columns=COLUMNS):
                    yield _table(_names(batch), _encoded(batch))
                    done += len(batch)
        except (OSError, ValueError, pa.ArrowException) as error:
            with shard.open() as stream, pq.ParquetFile(stream) as parquet:
                names = _names(parquet.read_row_group(group, columns=["image_id"]))[done:]
            yield _table(names, [None] * len(names), f"{shard}: row group {group}: {first_line(error)}")


def _table(names: list[str | None], images: list[bytes | None], problem: str | None = None) -> pa.Table:
    columns = {"image_id": names, "image": images, "problem": [problem] * len(names)}
    return pa.table(columns, pa.schema({"image_id": pa.string(), "image": pa.binary(), "problem": pa.string()}))


def _names(rows: pa.Table | pa.RecordBatch) -> list[str | None]:
    return [None if name is None else str(name) for name in rows["image_id"].to_pylist()]


def _encoded(rows: pa.RecordBatch) -> list[bytes | None]:
    return [image["bytes"] if isinstance(image, dict) else image for image in rows["image"].to_pylist()]


def _check_columns(schema: pa.Schema, shard: StoragePath) -> None:
    """Check that a file has a name and an image, before a value is read.

    A value of an extension type may be a program in disguise.
    """
    columns = {column.name: column.type for column in schema}
    name, image = (columns.get(column, pa.null()) for column in COLUMNS)
    if pa.types.is_dictionary(name):
        name = name.value_type
    if pa.types.is_struct(image):
        image = next((part.type for part in image if part.name == "bytes"), pa.null())
    if not (holds(name, pa.string()) or pa.types.is_integer(name)) or not holds(image, pa.binary()):
        has = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(
            f"{shard}: has columns {has}; image_id (a string or a whole number) and image (binary, or a struct with "
            "bytes) are needed"
        )


def check_names(ids: Sequence[str], source: str) -> None:
    """Check that no two images would be written to the same file, and none to a folder of others.

    Raises:
        UserError: names the images.
    """
    files: dict[str, str] = {}
    for image_id in ids:
        name = safe_name(image_id) + ".png"
        if name in files:
            other = files[name]
            what = (
                f"{quoted(image_id)} stands twice" if other == image_id else f"{quoted(other)} and {quoted(image_id)}"
            )
            raise UserError(f"{source}: {what}: {quoted(name)} can be written for one image only")
        files[name] = image_id
    for name in files:
        for parent in PurePosixPath(name).parents:
            if str(parent) in files:
                raise UserError(f"{source}: {quoted(files[name])} needs a folder where {quoted(str(parent))} is a file")


def _files(place: StoragePath, follow_links: bool, left_out: list[Reject]) -> list[StoragePath]:
    """List a file, or all files of a folder and its subfolders, sorted by name."""
    kind = place.filesystem.get_file_info(place.path).type
    if kind == fs.FileType.File:
        return [place]
    if place.local:
        return [place / name for name in _local_files(Path(place), follow_links, left_out)]
    entries = place.filesystem.get_file_info(fs.FileSelector(place.path, recursive=True, allow_not_found=True))
    names = sorted(entry.path for entry in entries if entry.type == fs.FileType.File)
    return [place / name.removeprefix(f"{place.path}/") for name in names]


def _local_files(root: Path, follow_links: bool, left_out: list[Reject]) -> list[str]:
    """List the names of a folder's regular files; files that cannot be read are added to `left_out`."""
    folder = Folder(root, follow_links)
    names = []
    for parent, _, files in os.walk(root):
        for file in files:
            name = str((Path(parent) / file).relative_to(root))
            try:
                folder.check(name)
                name.encode()
                names.append(name)
            except Reject as reject:
                left_out.append(Reject(reject.reason, reject.detail, one_line(name)))
            except UnicodeEncodeError:
                left_out.append(Reject("not tried", "its name is not UTF-8: rename it", one_line(name)))
    return sorted(names)


def _base(pattern: str) -> str:
    """Return the longest folder of a glob pattern without wildcards."""
    fixed: list[str] = []
    for part in PurePosixPath(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return str(PurePosixPath(*fixed))


def _below(path: StoragePath, base: StoragePath) -> str:
    """Return a file's path below the base."""
    return path.path.removeprefix(f"{base.path}/") if path.path != base.path else path.name
