"""Writing of a data set: every row is checked; good ones are streamed into Parquet shards, the others recorded."""

import io
import itertools
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import ValidationError

from multas_ray.config import TASKS
from multas_ray.data.footer import runs, to_metadata
from multas_ray.data.index import read_shard
from multas_ray.data.pillow import encode
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, check_row
from multas_ray.data.schema import SCHEMA, TASK_MASKS, DatasetInfo, TaskMask, read_info
from multas_ray.documents import explain
from multas_ray.errors import UserError, first_line, one_line, quoted
from multas_ray.storage import StoragePath
from multas_ray.tasks.segmentation.rows import IGNORE, VOID_PIXELS

if TYPE_CHECKING:
    from multas_ray.formats.source import Source, Split

ROW_GROUP, GROUP_BYTES = 64, 8_000_000
"""Largest number of rows of a row group, and the bytes of images that fill one: the unit that training reads and
shuffles. With large images too, a window of groups that are shuffled together fits into a data task's cache."""
SHARD_GROUPS = 16
"""Number of row groups of a Parquet file."""
REJECTED = "rejected.jsonl"
"""Name of the file of rejected rows."""


@dataclass
class Summary:
    """Counts of the rows that were written, and of those that were rejected."""

    rows: dict[str, dict[TaskMask, int]] = field(default_factory=dict)
    """Number of rows by split and task mask."""
    boxes: Counter[tuple[str, TaskMask]] = field(default_factory=Counter)
    """Number of boxes by split and task mask."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Number of rejected rows by reason."""
    examples: dict[str, str] = field(default_factory=dict)
    """Id and detail of the first rejected row by reason."""
    notes: dict[str, Counter[str]] = field(default_factory=dict)
    """Counts by split of repairs, omissions and interpretations of annotation."""
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    """(256,) int64 number of mask pixels by value, by split."""


def write_dataset(
    path: str | Path,
    source: "Source",
    *,
    command: str = "",
    max_rejected: float = 0.01,
    overwrite: bool = False,
    add: bool = False,
    advance: Callable[[str], None] = lambda split: None,
) -> Summary:
    """Write a data set, or add splits, or rows to splits, to one with the same classes.

    Everything is written into a folder beside `path` and moved there at the end: a job that fails or is killed leaves
    no partial data set. Memory holds a row group and the ids seen, whatever the number of rows.

    Args:
        path: local folder of the data set.
        source: images and annotation, read once and in order.
        command: command line of the job, recorded in dataset.json.
        max_rejected: largest share of rejected rows, 0..1.
        overwrite: replace a data set at `path`, with all its splits.
        add: allow rows to be added to an existing split.
        advance: called with the name of the split for every item that was read.

    Raises:
        UserError: `path` cannot be written to, a class has no name, too many rows were rejected, or a split has none
            left.
    """
    out = _local(path)
    present = _present(out, source, overwrite, add)
    try:
        info = DatasetInfo(
            name=source.name,
            det_classes=list(source.classes["det"]),
            seg_classes=list(source.classes["seg"]),
            splits={split: {} for split in source.splits},
            source=source.about,
            command=command,
        )
    except ValidationError as error:
        raise UserError(f"{source.about or out}: {explain(error, DatasetInfo)}") from None
    summary = Summary()
    stage = _folder_beside(out)
    try:
        with (stage / REJECTED).open("w") as rejections:
            for name, split in source.splits.items():
                seen = set(_stored_ids(out / name)) if present and name in present.splits else set()
                rows = _accepted(_rows(name, split, advance), name, info, seen, summary, rejections)
                summary.rows[name] = _write_shards(stage / name, rows)
        _judge(summary, info, max_rejected, stage / REJECTED, out)
        info.splits = summary.rows
        if present:
            _add_splits(out, stage, present, info)
        else:
            (stage / "dataset.json").write_text(info.model_dump_json(indent=2) + "\n")
            _replace_folder(out, stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return summary


def _local(path: str | Path) -> Path:
    """Resolve `--out` to a local path, or raise a UserError."""
    if "://" in str(path):
        raise UserError(f"--out {path}: a data set is written to a local folder; copy it to the store afterwards")
    try:
        out = Path(path).expanduser().resolve()
        out.exists()
        str(out).encode()
        return out
    # The home of an unknown user, a NUL, a name that is too long or not UTF-8.
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--out {quoted(str(path))}: no usable path ({one_line(error, 100)})") from None


def _present(out: Path, source: "Source", overwrite: bool, add: bool) -> DatasetInfo | None:
    """Read the description of the data set at `out` that splits or rows are added to; None for a new one.

    Raises:
        UserError: `out` may be neither replaced nor added to, or a split's name is no folder name.
    """
    for split in source.splits:
        if (
            not split
            or split.startswith(".")
            or Path(split).name != split
            or len(split) > 100
            or not split.isprintable()
        ):
            raise UserError(f"split {quoted(split)}: a plain folder name is needed")
    if not out.exists() or (out.is_dir() and {entry.name for entry in out.iterdir()} <= {REJECTED}):
        return None
    if not (out / "dataset.json").is_file():
        raise UserError(f"--out {out}: exists and is not a data set; it is left alone, choose another folder")
    if overwrite:
        return None
    info = read_info(str(out))
    repeated = [split for split in source.splits if split in info.splits]
    if repeated and not add:
        raise UserError(
            f"--out {out}: this data set already has {', '.join(repeated)}; --add adds rows to it, --overwrite "
            "replaces the data set"
        )
    if info.det_classes != list(source.classes["det"]) or info.seg_classes != list(source.classes["seg"]):
        raise UserError(f"--out {out}: this data set has other classes ({', '.join(info.det_classes)})")
    return info


def _folder_beside(out: Path) -> Path:
    """Make an empty folder on the same file system as `out`, so that renaming moves it there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    folder.chmod(0o755)  # mkdtemp makes it private
    return folder


def _stored_ids(split: Path) -> Iterator[str]:
    """Yield the ids of a split's stored rows."""
    for file in sorted(split.glob("*.parquet")):
        try:
            ids = read_shard(StoragePath(file), lambda shard: shard.read(columns=["image_id"])["image_id"].to_pylist())
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
        yield from ids


def _rows(name: str, split: "Split[Any]", advance: Callable[[str], None]) -> Iterator[Row | Reject]:
    """Read the rows of a split in the order of its items, without the images that are left out."""
    for item in split.items:
        row = split.read(item)
        advance(name)
        if row is not None:
            yield row


def _accepted(
    rows: Iterable[Row | Reject],
    split: str,
    info: DatasetInfo,
    seen: set[str],
    summary: Summary,
    rejections: io.TextIOBase,
) -> Iterator[Row]:
    """Yield the rows that keep the data contract; record the others in `summary` and `rejections`."""
    notes = summary.notes[split] = Counter()
    pixels = summary.pixels[split] = np.zeros(256, np.int64)
    classes = {task: len(names) for task, names in info.classes.items()}
    for row in rows:
        try:
            if isinstance(row, Reject):
                raise row
            if row.image_id in seen:
                raise Reject("duplicate id", f"the split has {quoted(row.image_id)} already")
            checked = check_row(row, classes)
        except Reject as reject:
            summary.rejected[reject.reason] += 1
            summary.examples.setdefault(reject.reason, f"{row.image_id}: {reject.detail}")
            record = {
                "split": split,
                "image_id": row.image_id,
                "reason": reject.reason,
                "detail": reject.detail,
            }
            rejections.write(json.dumps(record) + "\n")
            continue
        seen.add(row.image_id)
        summary.boxes[split, checked.task_mask] += len(checked.boxes)
        notes.update(checked.notes)
        if checked.mask is not None:
            pixels += np.bincount(checked.mask.ravel(), minlength=256)
        yield checked


def _write_shards(folder: Path, rows: Iterator[Row]) -> dict[TaskMask, int]:
    """Write rows as `part-00000.parquet` and so on; return their number by task mask."""
    folder.mkdir()
    counts: Counter[TaskMask] = Counter()
    groups = _row_groups(rows)
    for shard, first in enumerate(groups):
        file = folder / f"part-{shard:05d}.parquet"
        # Images and masks are compressed already, and nothing in them repeats.
        with pq.ParquetWriter(file, SCHEMA, compression="none", use_dictionary=False) as writer:
            kinds = []
            for group in itertools.chain([first], itertools.islice(groups, SHARD_GROUPS - 1)):
                counts.update(row.task_mask for row in group)
                writer.write_table(pa.Table.from_pylist([_record(row) for row in group], schema=SCHEMA))
                kinds.append(runs(np.array([row.kind for row in group], np.uint8)))
            writer.add_key_value_metadata(to_metadata(kinds))
    return {mask: counts[mask] for mask in TASK_MASKS if counts[mask]}


def _row_groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Group rows, by number and by bytes of images; in a group, rows of a kind lie together."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.image)
        if len(group) == ROW_GROUP or size >= GROUP_BYTES:
            yield sorted(group, key=lambda row: row.kind)
            group, size = [], 0
    if group:
        yield sorted(group, key=lambda row: row.kind)


def _record(row: Row) -> dict[str, object]:
    """Convert a row to the columns of `SCHEMA`."""
    return {
        "image_id": row.image_id,
        "image": row.image,
        "height": row.height,
        "width": row.width,
        "has_det": row.has_det,
        "has_seg": row.has_seg,
        "boxes": row.boxes.tolist(),
        "labels": row.labels.tolist(),
        "difficult": row.difficult.tolist(),
        "mask": None if row.mask is None else encode(Image.fromarray(row.mask), "PNG"),
        **{f"{task}_unlabelled": list(row.unlabelled.get(task, ())) or None for task in TASKS},
    }


def _judge(summary: Summary, info: DatasetInfo, max_rejected: float, rejections: Path, out: Path) -> None:
    """Refuse a data set with too many rejected rows, an empty split or empty annotation; keep the record of them."""
    bad = summary.rejected.total()
    total = bad + sum(sum(counts.values()) for counts in summary.rows.values())
    empty = [split for split, counts in summary.rows.items() if not counts]
    if bad <= max_rejected * total and not empty:
        _judge_content(summary, info)
        return
    if not bad:
        raise UserError(f"no rows for {', '.join(empty)}")
    # An existing data set keeps its own record.
    record = out.with_name(f"{out.name}.{REJECTED}") if (out / "dataset.json").exists() else out / REJECTED
    record.parent.mkdir(exist_ok=True)
    shutil.move(rejections, record)
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary.rejected.most_common())
    first = summary.examples[summary.rejected.most_common(1)[0][0]]
    raise UserError(
        f"{bad} of {total} rows rejected, --max-rejected {max_rejected:g} allows {int(max_rejected * total)}: "
        f"{reasons} (such as {one_line(first, 400)}); see {record}"
    )


def _judge_content(summary: Summary, info: DatasetInfo) -> None:
    """Refuse a split whose boxes were all dropped, or whose masks hold no class or little else than void pixels.

    Their files mean something else.
    """
    for split, notes in summary.notes.items():
        dropped = {name: count for name, count in notes.items() if name.startswith("boxes dropped")}
        if dropped and not sum(boxes for (of, _), boxes in summary.boxes.items() if of == split):
            reasons = ", ".join(f"{count} {name}" for name, count in dropped.items())
            raise UserError(f"{split}: no box is left ({reasons}); are they x1 y1 x2 y2 in pixels of these images?")
    first = 1 if info.seg_classes[:1] == ["background"] else 0
    for split, pixels in summary.pixels.items():
        if pixels[IGNORE] and not pixels[first:IGNORE].sum():
            raise UserError(
                f"{split}: no class is in any mask, and {pixels[IGNORE] / pixels.sum():.1%} of the pixels are ignored "
                "(255: crowds, void, classes that are not kept); do these masks mean objects by it?"
            )
        void = summary.notes[split][VOID_PIXELS]
        if 2 * void > pixels.sum():
            raise UserError(
                f"{split}: {void / pixels.sum():.1%} of the masks' pixels are void (255) in their files, which teaches "
                "nothing; do these masks mean a class by it?"
            )


def _replace_folder(out: Path, stage: Path) -> None:
    """Move the finished folder to `out`, in place of a data set that may be replaced (see `_present`)."""
    if not out.exists():
        stage.rename(out)
        return
    old = _folder_beside(out)
    out.rename(old)
    stage.rename(out)
    shutil.rmtree(old)


def _add_splits(out: Path, stage: Path, present: DatasetInfo, new: DatasetInfo) -> None:
    """Move new splits, and new shards of existing splits, into a data set.

    dataset.json is written last: a split that it lists is complete.
    """
    counts = dict(present.splits)
    for split, rows in new.splits.items():
        if split in present.splits:
            _merge_shards(out / split, stage / split)
            counts[split] = {mask: counts[split].get(mask, 0) + rows.get(mask, 0) for mask in TASK_MASKS}
            counts[split] = {mask: count for mask, count in counts[split].items() if count}
        else:
            # A folder that dataset.json does not list is the rest of a killed job.
            shutil.rmtree(out / split, ignore_errors=True)
            (stage / split).rename(out / split)
            counts[split] = rows
    with (out / REJECTED).open("a") as rejections:
        rejections.write((stage / REJECTED).read_text())
    info = present.model_copy(
        update={
            "schema_version": new.schema_version,
            "splits": counts,
            "source": "; ".join(dict.fromkeys(filter(None, [present.source, new.source]))),
            "command": "; ".join(filter(None, [present.command, new.command])),
        }
    )
    (stage / "dataset.json").write_text(info.model_dump_json(indent=2) + "\n")
    (stage / "dataset.json").replace(out / "dataset.json")


def _merge_shards(present: Path, new: Path) -> None:
    """Replace a folder of shards, in one step, by a folder of these shards and new ones."""
    shards = sorted(present.glob("*.parquet"))
    for number, file in reversed(list(enumerate(sorted(new.iterdir()), start=len(shards)))):
        file.rename(new / f"part-{number:05d}.parquet")
    for number, file in enumerate(shards):
        target = new / f"part-{number:05d}.parquet"
        try:
            target.hardlink_to(file)
        except OSError:  # not every file system has links
            shutil.copy2(file, target)
    _replace_folder(present, new)
