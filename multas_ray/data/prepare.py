"""Write a data set: check every row, stream the good ones into Parquet shards, keep account of the rest."""

import io
import itertools
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from multas_ray.config import Task
from multas_ray.data.schema import IGNORE, SCHEMA, TASK_MASKS, DatasetInfo, TaskMask, read_info
from multas_ray.errors import UserError

ROW_GROUP = 64
"""Rows of a row group, the unit that training reads and shuffles."""
SHARD_GROUPS = 16
"""Row groups of a Parquet file."""
SLACK = 2.0
"""Pixels that a box may lie outside its image and still be clipped instead of rejected."""
REJECTED = "rejected.jsonl"


class Reject(Exception):
    """A row that cannot be used: raised where that is found out, handed on in the row's place.

    `reason` is one of few short phrases, to be counted; `detail` says what was found.
    """

    def __init__(self, reason: str, detail: str = "", image_id: str = "") -> None:
        super().__init__(reason, detail, image_id)
        self.reason, self.detail, self.image_id = reason, detail, image_id


@dataclass
class Row:
    """One image as a reader found it: nothing in it is checked yet."""

    image_id: str
    image: bytes
    """The encoded file."""
    height: int
    """As the annotation states it, in pixels."""
    width: int
    has_det: bool = False
    has_seg: bool = False
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    """(N, 4) float32, x1 y1 x2 y2 in pixels, continuous."""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """(N,) int32."""
    difficult: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) bool."""
    mask: np.ndarray | None = None
    """(H, W) uint8 class ids, where has_seg."""

    @property
    def task_mask(self) -> TaskMask:
        """What the row is annotated for."""
        return TASK_MASKS[self.has_det + 2 * self.has_seg]

    def only(self, task: Task | None) -> "Row":
        """The row without the annotation of every task but this one."""
        bare = Row(self.image_id, self.image, self.height, self.width)
        if task == "det":
            return replace(self, has_seg=False, mask=None)
        if task == "seg":
            return replace(bare, has_seg=self.has_seg, mask=self.mask)
        return bare


@dataclass
class Summary:
    """What a writer wrote, and what it did not."""

    rows: dict[str, dict[TaskMask, int]] = field(default_factory=dict)
    """By split and task mask."""
    boxes: Counter[tuple[str, TaskMask]] = field(default_factory=Counter)
    """By split and task mask."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    zero_area: int = 0
    """Boxes dropped for having no area."""
    clipped: int = 0
    """Boxes that lay at most SLACK pixels outside their image."""


def attempt(image_id: str, read: Callable[[], Row]) -> Row | Reject:
    """Read a row; where that fails, the reason takes its place."""
    try:
        return read()
    except Reject as reject:
        return Reject(reject.reason, reject.detail, image_id)


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        Reject: there is no such file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise Reject("missing image", f"{path.name}: {error.strerror}") from None


@contextmanager
def decoding(reason: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a file it cannot decode into a Reject."""
    try:
        yield
    # A corrupt file meets decoders in states they do not expect: SyntaxError, struct.error and more are on record.
    except Exception as error:
        raise Reject(reason, " ".join(str(error).split()) or type(error).__name__) from None


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in the header of an encoded image.

    Raises:
        Reject: there is no readable header.
    """
    with decoding("broken image"), Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def as_rgb(data: bytes) -> tuple[bytes, int, int]:
    """Decode an image in full and return it as an RGB JPEG or PNG, with height and width in pixels.

    An RGB JPEG or PNG keeps its bytes. Others are encoded anew: JPEG as JPEG (quality 95), the rest without loss.

    Raises:
        Reject: it is broken, or its mode has no RGB meaning (16-bit grey, float).
    """
    with decoding("broken image"), Image.open(io.BytesIO(data)) as image:
        image.load()
    if image.mode == "RGB" and image.format in ("JPEG", "PNG"):
        return data, image.height, image.width
    # Pillow would clip these to 0..255 and call the result an image.
    if image.mode.startswith(("I", "F")):
        raise Reject("not convertible to RGB", f"mode {image.mode}")
    with decoding("not convertible to RGB"):
        rgb = image.convert("RGB")
    return encode(rgb, "JPEG" if image.format == "JPEG" else "PNG"), image.height, image.width


def encode(image: Image.Image, format: str) -> bytes:
    """The bytes of a JPEG (quality 95) or PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}))
    return buffer.getvalue()


def check_row(row: Row, det_classes: int, seg_classes: int) -> tuple[Row, int, int]:
    """A row that keeps the data contract; beside it the number of boxes clipped, and of boxes dropped.

    Args:
        row: as read.
        det_classes: number of object classes.
        seg_classes: number of pixel classes, with background.

    Raises:
        Reject: the row breaks the contract in a way that cannot be mended.
    """
    image, height, width = as_rgb(row.image)
    if (height, width) != (row.height, row.width):
        raise Reject("annotation of another size", f"{row.width}x{row.height}, the image has {width}x{height}")
    if row.has_seg != (row.mask is not None) or (len(row.boxes) and not row.has_det):
        raise ValueError(f"{row.image_id}: annotation and task mask contradict each other")
    if row.mask is not None:
        _check_mask(row.mask, height, width, seg_classes)
    if ((row.labels < 0) | (row.labels >= det_classes)).any():
        raise Reject("unknown class", f"labels {sorted(set(row.labels.tolist()))} of {det_classes} classes")

    boxes = row.boxes.astype(np.float32).reshape(-1, 4)
    x1, y1, x2, y2 = boxes.T
    outside = np.stack([-x1, -y1, x2 - width, y2 - height, -x2, -y2, x1 - width, y1 - height], axis=1)
    # "not <=" also catches NaN.
    if not (outside <= SLACK).all():
        worst = int(np.argmax(np.nan_to_num(outside, nan=np.inf).max(axis=1)))
        raise Reject("box outside its image", f"{boxes[worst].tolist()} in {width}x{height}")
    if (x2 < x1).any() or (y2 < y1).any():
        raise Reject("inverted box", str(boxes[(x2 < x1) | (y2 < y1)][0].tolist()))
    clipped = boxes.clip(0, np.array([width, height, width, height], np.float32))
    keep = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    checked = replace(row, image=image, boxes=clipped[keep], labels=row.labels[keep], difficult=row.difficult[keep])
    return checked, int((clipped != boxes).any(axis=1)[keep].sum()), int((~keep).sum())


def _check_mask(mask: np.ndarray, height: int, width: int, classes: int) -> None:
    if mask.shape != (height, width):
        raise Reject("mask of another size", f"{mask.shape[1]}x{mask.shape[0]}, the image has {width}x{height}")
    ids = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unknown = [int(i) for i in ids if i >= classes and i != IGNORE]
    if unknown:
        raise Reject("unknown class", f"mask holds {unknown}, there are {classes} classes")


def write_dataset(
    path: str | Path,
    name: str,
    det_classes: Sequence[str],
    seg_classes: Sequence[str],
    splits: Mapping[str, Iterable[Row | Reject]],
    *,
    source: str = "",
    command: str = "",
    max_rejected: float = 0.01,
    overwrite: bool = False,
) -> Summary:
    """Write a data set, or add splits to one that has the same classes.

    All is written into a folder beside `path` and moved there at the end: a job that fails or is killed leaves no half
    a data set. Memory holds a row group and the ids seen, whatever the number of rows.

    Args:
        path: local folder of the data set.
        name: its name.
        det_classes: object classes; index = label.
        seg_classes: pixel classes, background first; index = mask value.
        splits: the rows of each split, read once and in order.
        source: where the rows come from.
        command: the command line that makes it.
        max_rejected: largest share of rejected rows, 0..1.
        overwrite: replace a data set that is there, with all its splits.

    Raises:
        UserError: `path` cannot be written to, too many rows were rejected, or a split has none left.
    """
    out = _local(path)
    present = _present(out, overwrite, splits, det_classes, seg_classes)
    seen = set(_stored_ids(out, present)) if present else set()
    summary = Summary()
    stage = _folder_beside(out)
    try:
        with (stage / REJECTED).open("w") as rejections:
            for split, rows in splits.items():
                accepted = _accepted(rows, split, len(det_classes), len(seg_classes), seen, summary, rejections)
                summary.rows[split] = _write_shards(stage / split, accepted)
        _judge(summary, max_rejected, stage / REJECTED, out)
        info = DatasetInfo(
            name=name,
            det_classes=list(det_classes),
            seg_classes=list(seg_classes),
            splits=summary.rows,
            source=source,
            command=command,
        )
        if present:
            _add_splits(out, stage, present, info)
        else:
            (stage / "dataset.json").write_text(info.model_dump_json(indent=2) + "\n")
            _replace_folder(out, stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return summary


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise UserError(f"--out {path}: a data set is written to a local folder; copy it to the store afterwards")
    return Path(path).expanduser().resolve()


def _present(
    out: Path, overwrite: bool, splits: Iterable[str], det_classes: Sequence[str], seg_classes: Sequence[str]
) -> DatasetInfo | None:
    """The data set at `out` that is to be added to, if any.

    Raises:
        UserError: what is there may be neither replaced nor added to, or a split's name is no folder name.
    """
    for split in splits:
        if not split or split.startswith(".") or Path(split).name != split:
            raise UserError(f"split '{split}': a plain folder name is needed")
    if not out.exists() or (out.is_dir() and {entry.name for entry in out.iterdir()} <= {REJECTED}):
        return None
    if not (out / "dataset.json").is_file():
        raise UserError(f"--out {out}: exists and is not a data set; it is left alone, choose another folder")
    if overwrite:
        return None
    info = read_info(str(out))
    again = [split for split in splits if split in info.splits]
    if again:
        raise UserError(f"--out {out}: this data set already has {', '.join(again)}; --overwrite replaces the data set")
    if info.det_classes != list(det_classes) or info.seg_classes != list(seg_classes):
        raise UserError(f"--out {out}: this data set has other classes ({', '.join(info.det_classes)})")
    return info


def _folder_beside(out: Path) -> Path:
    """A new, empty folder on the same file system as `out`, so that renaming is enough to put it there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    folder.chmod(0o755)  # mkdtemp makes it private
    return folder


def _stored_ids(out: Path, info: DatasetInfo) -> Iterator[str]:
    for split in info.splits:
        for file in sorted((out / split).glob("*.parquet")):
            yield from pq.read_table(file, columns=["image_id"])["image_id"].to_pylist()


def _accepted(
    rows: Iterable[Row | Reject],
    split: str,
    det_classes: int,
    seg_classes: int,
    seen: set[str],
    summary: Summary,
    rejections: io.TextIOBase,
) -> Iterator[Row]:
    """Pass on the rows that keep the contract; put the others on record."""
    for row in rows:
        try:
            if isinstance(row, Reject):
                raise row
            if row.image_id in seen:
                raise Reject("duplicate id", f"{row.image_id} is already in the data set")
            checked, clipped, dropped = check_row(row, det_classes, seg_classes)
        except Reject as reject:
            summary.rejected[reject.reason] += 1
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
        summary.clipped += clipped
        summary.zero_area += dropped
        yield checked


def _write_shards(folder: Path, rows: Iterator[Row]) -> dict[TaskMask, int]:
    """Write rows as `part-00000.parquet` and so on; returns their number by task mask."""
    folder.mkdir()
    counts: Counter[TaskMask] = Counter()
    groups = iter(lambda: list(itertools.islice(rows, ROW_GROUP)), [])
    for shard, first in enumerate(groups):
        file = folder / f"part-{shard:05d}.parquet"
        # Images and masks are compressed already, and nothing in them repeats.
        with pq.ParquetWriter(file, SCHEMA, compression="none", use_dictionary=False) as writer:
            for group in itertools.chain([first], itertools.islice(groups, SHARD_GROUPS - 1)):
                counts.update(row.task_mask for row in group)
                writer.write_table(pa.Table.from_pylist([_record(row) for row in group], schema=SCHEMA))
    return {mask: counts[mask] for mask in TASK_MASKS if counts[mask]}


def _record(row: Row) -> dict[str, object]:
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
    }


def _judge(summary: Summary, max_rejected: float, rejections: Path, out: Path) -> None:
    """Refuse a data set with too many rejected rows, or with an empty split; the record of rejections is kept."""
    bad = summary.rejected.total()
    total = bad + sum(sum(counts.values()) for counts in summary.rows.values())
    empty = [split for split, counts in summary.rows.items() if not counts]
    if bad <= max_rejected * total and not empty:
        return
    if not bad:
        raise UserError(f"no rows for {', '.join(empty)}")
    # A data set that is there keeps its own record.
    kept = out.with_name(f"{out.name}.{REJECTED}") if (out / "dataset.json").exists() else out / REJECTED
    kept.parent.mkdir(exist_ok=True)
    shutil.move(rejections, kept)
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary.rejected.most_common())
    raise UserError(
        f"{bad} of {total} rows rejected, --max-rejected {max_rejected:g} allows {int(max_rejected * total)}: "
        f"{reasons}; see {kept}"
    )


def _replace_folder(out: Path, stage: Path) -> None:
    """Put the finished folder in place of what `_present` found replaceable."""
    if not out.exists():
        stage.rename(out)
        return
    old = _folder_beside(out)
    out.rename(old)
    stage.rename(out)
    shutil.rmtree(old)


def _add_splits(out: Path, stage: Path, present: DatasetInfo, new: DatasetInfo) -> None:
    """Move new splits into a data set. dataset.json comes last: a split that it lists is whole."""
    for split in new.splits:
        # A folder that dataset.json does not list is what a killed run left.
        shutil.rmtree(out / split, ignore_errors=True)
        (stage / split).rename(out / split)
    with (out / REJECTED).open("a") as rejections:
        rejections.write((stage / REJECTED).read_text())
    info = present.model_copy(
        update={
            "splits": present.splits | new.splits,
            "source": "; ".join(dict.fromkeys(filter(None, [present.source, new.source]))),
            "command": "; ".join(filter(None, [present.command, new.command])),
        }
    )
    (stage / "dataset.json").write_text(info.model_dump_json(indent=2) + "\n")
    (stage / "dataset.json").replace(out / "dataset.json")
