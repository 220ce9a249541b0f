"""Prepare a data set folder from a VOCdevkit folder, COCO instances, generated scenes, or part of a data set.

python jobs/prepare.py voc --root VOC2012 --det MXEdet/train --seg MXEseg/train --val Main/val --out data/voc
python jobs/prepare.py voc --root my_labels --det all --out data/mine
python jobs/prepare.py coco --images train2017 --annotations instances_train2017.json --split train --out data/coco
python jobs/prepare.py scenes --train 1000 --val 200 --partial det=0.5,seg=0.5 --out data/scenes
python jobs/prepare.py carve --data data/voc --fraction 0.2 --out data/voc_tuning
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from multas_ray.cli import Parser, at_least, run_job
from multas_ray.errors import UserError, one_line
from multas_ray.terminal import terminal

EMPTY = ("background", "unlabelled", "skip")
IGNORE = 255

if TYPE_CHECKING:
    from multas_ray.config import Task
    from multas_ray.data.reject import Reject
    from multas_ray.data.row import Row
    from multas_ray.data.writer import Summary

    Rows = Iterable[Row | Reject]
    Track = Callable[[str, Rows, int], Rows]
    """Shows a progress bar for a split while its rows are drawn: split, rows, their number."""
    Read = tuple[str, list[str], str, dict[str, Rows], list[str]]
    """Of a source: name of the data set, its classes, a description, the rows by split, and remarks for its user."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, write the data set, print what is in it."""
    args = parse(arguments)

    from multas_ray.data.writer import write_dataset

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal(stderr=True), disable=not sys.stderr.isatty()) as progress:

        def track(split: str, rows: Rows, total: int) -> Rows:
            return progress.track(rows, total=total, description=split)

        name, classes, source, splits, remarks = args.read(args, track)
        summary = write_dataset(
            args.out,
            args.name or name,
            classes,
            ["background", *classes],
            splits,
            source=source,
            command=shlex.join(["python", "jobs/prepare.py", *(sys.argv[1:] if arguments is None else arguments)]),
            max_rejected=args.max_rejected,
            overwrite=args.overwrite,
            add=args.add,
        )
    show(summary, args.out, remarks)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `read` is the function of the chosen source."""
    from multas_ray.formats.partial import parse_fractions

    common = Parser(add_help=False)
    common.add_argument("--out", required=True, help="data set folder; a further split is added to one that is there")
    common.add_argument("--add", action="store_true", help="add rows to a split that is there already")
    common.add_argument("--name", type=printable, help="name of the data set (default: of the source)")
    common.add_argument("--max-rejected", type=fraction, default=0.01, help="largest share of bad rows (default 0.01)")
    common.add_argument("--overwrite", action="store_true", help="replace the data set at --out, with all its splits")

    files = Parser(add_help=False)
    files.add_argument(
        "--classes", type=names, help="comma-separated; boxes of others are dropped, their pixels ignored"
    )
    files.add_argument("--follow-links", action="store_true", help="read files to which links lead out of the folder")

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = parser.add_subparsers(dest="source", required=True)

    sub = sources.add_parser("voc", parents=[common, files], help="VOC's layout: XML of boxes, masks of class ids")
    sub.add_argument("--root", type=folder, required=True, help="the folder that holds JPEGImages, or images and XML")
    sub.add_argument(
        "--det",
        metavar="SET/SPLIT",
        help="training images annotated with boxes only, e.g. MXEdet/train; `all`: every one",
    )
    sub.add_argument("--seg", metavar="SET/SPLIT", help="training images annotated with masks only")
    sub.add_argument("--full", metavar="SET/SPLIT", help="training images annotated with both")
    sub.add_argument("--unlabelled", metavar="SET/SPLIT", help="training images without annotation")
    sub.add_argument("--val", metavar="SET/SPLIT", help="validation images, annotated with both")
    sub.add_argument("--empty", choices=EMPTY, help="what an image without XML is (default: rejected)")
    sub.set_defaults(read=read_voc)

    sub = sources.add_parser("coco", parents=[common, files], help="COCO instances: boxes, outlines, or some of each")
    sub.add_argument("--images", type=folder, required=True, help="folder of the images")
    sub.add_argument("--annotations", type=Path, required=True, help="instances json")
    sub.add_argument("--split", required=True, help="name of the split that is written, e.g. train")
    sub.add_argument("--partial", type=parse_fractions, help="e.g. det=0.5,seg=0.5: images that keep only this task")
    sub.add_argument("--seed", type=at_least(0), default=0, help="of --partial")
    sub.add_argument(
        "--empty", choices=EMPTY, default="background", help="what an image without an object is (default background)"
    )
    sub.add_argument("--boxes-from-masks", action="store_true", help="make boxes of outlines where objects have none")
    sub.set_defaults(read=read_coco)

    sub = sources.add_parser("scenes", parents=[common], help="generated scenes of shapes")
    sub.add_argument("--train", type=at_least(0), default=1000, help="training scenes (default 1000)")
    sub.add_argument("--val", type=at_least(0), default=200, help="validation scenes (default 200)")
    sub.add_argument("--size", type=at_least(16, 4096), default=128, help="side in pixels, 16 to 4096 (default 128)")
    sub.add_argument("--partial", type=parse_fractions, help="e.g. det=0.5,seg=0.5: of the training scenes")
    sub.add_argument("--seed", type=at_least(0), default=0)
    sub.set_defaults(read=read_scenes)

    sub = sources.add_parser("carve", parents=[common], help="a split in two, to choose settings on its smaller part")
    sub.add_argument("--data", required=True, help="data set folder")
    sub.add_argument("--split", default="train", help="the split to divide (default train)")
    sub.add_argument("--fraction", type=fraction, default=0.2, help="of its rows that become val (default 0.2)")
    sub.add_argument("--seed", type=at_least(0), default=0)
    sub.set_defaults(read=read_carved)
    return parser.parse_args(arguments)


def read_voc(args: argparse.Namespace, track: Track) -> Read:
    """The splits of a folder in VOC's layout."""
    from multas_ray.formats.voc import Devkit

    devkit = Devkit(args.root, args.follow_links, args.empty)
    chosen: dict[str, dict[str, set[Task]]] = {}
    roles: list[tuple[str, str | None, tuple[Task, ...]]] = [
        ("train", args.det, ("det",)),
        ("train", args.seg, ("seg",)),
        ("train", args.full, ("det", "seg")),
        ("train", args.unlabelled, ()),
        ("val", args.val, ("det", "seg")),
    ]
    for split, name, tasks in roles:
        if name:
            items = chosen.setdefault(split, {})
            for image_id in devkit.read_list(name):
                items.setdefault(image_id, set()).update(tasks)
    if not chosen:
        raise UserError("voc: nothing to read; give at least one of --det, --seg, --full, --unlabelled, --val")
    # By id, so that rows of all task masks lie side by side and any stretch of the file holds each of them.
    lists = {
        split: [(image_id, tuple(sorted(tasks))) for image_id, tasks in sorted(items.items())]
        for split, items in chosen.items()
    }
    classes = devkit.choose_classes(lists, args.classes)
    splits: dict[str, Rows] = {
        split: track(split, devkit.read_rows(items, classes), len(items)) for split, items in lists.items()
    }
    return "voc", classes.kept, f"VOC: {args.root}", splits, devkit.remarks


def read_coco(args: argparse.Namespace, track: Track) -> Read:
    """One split from COCO instances."""
    from multas_ray.formats.coco import Instances
    from multas_ray.formats.files import Folder
    from multas_ray.formats.partial import apply_partial, draw_partial

    instances = Instances(
        args.annotations,
        Folder(args.images, args.follow_links),
        args.classes,
        empty=args.empty,
        boxes_from_masks=args.boxes_from_masks,
        masks=args.partial is None or args.partial.get("det", 0) < 1,
    )
    rows: Rows = track(args.split, instances.rows(), len(instances.ids))
    if args.partial:
        rows = apply_partial(rows, draw_partial(instances.ids, args.partial, args.seed))
    return "coco", instances.classes, f"COCO: {args.annotations}", {args.split: rows}, instances.remarks


def read_scenes(args: argparse.Namespace, track: Track) -> Read:
    """Generated scenes; the two splits are drawn from one sequence, so they share none."""
    from multas_ray.formats import scenes
    from multas_ray.formats.partial import apply_partial, draw_partial

    indices = {"train": range(args.train), "val": range(args.train, args.train + args.val)}
    splits: dict[str, Rows] = {
        key: track(key, scenes.rows(args.seed, span, args.size), len(span)) for key, span in indices.items() if span
    }
    if args.partial and "train" in splits:
        kept = draw_partial(map(scenes.scene_id, indices["train"]), args.partial, args.seed)
        splits["train"] = apply_partial(splits["train"], kept)
    if not splits:
        raise UserError("scenes: nothing to make; give --train or --val a number above 0")
    return "scenes", list(scenes.CLASSES), f"scenes: seed {args.seed}, size {args.size}", splits, []


def read_carved(args: argparse.Namespace, track: Track) -> Read:
    """A split of a data set in two."""
    from multas_ray.data.schema import read_info
    from multas_ray.formats.holdout import carve

    info = read_info(args.data)
    if info.seg_classes != ["background", *info.det_classes]:
        raise UserError(f"--data {args.data}: its two tasks have other classes, which carve cannot write")
    parts = carve(args.data, args.split, args.fraction, args.seed)
    splits: dict[str, Rows] = {name: track(name, rows, total) for name, (total, rows) in parts.items()}
    return info.name, info.det_classes, f"{args.split} of {args.data}", splits, []


def show(summary: Summary, out: str, remarks: Sequence[str] = ()) -> None:
    """Print rows by split and task mask, and what was rejected, dropped, clipped, or taken for something."""
    table = Table("split", "annotated for", "rows", "boxes", title=out)
    for split, counts in summary.rows.items():
        for mask, rows in counts.items():
            table.add_row(split, mask, str(rows), str(summary.boxes[split, mask]))
    console = terminal()
    console.print(table)
    reasons = [f"{rows} {reason}" for reason, rows in summary.rejected.most_common()]
    lines = [f"rejected rows: {', '.join(reasons) or 'none'}", *remarks]
    for split, notes in summary.notes.items():
        lines += [f"{split}: {count} {note}" for note, count in notes.items() if count]
        ignored, of = summary.pixels[split][IGNORE], summary.pixels[split].sum()
        lines += [f"{split}: {ignored / of:.1%} of the masks' pixels are ignored (255)"] if ignored else []
    for line in lines:
        console.print(one_line(line), highlight=False, soft_wrap=True)


def folder(text: str) -> Path:
    """An existing folder."""
    try:
        if Path(text).is_dir():
            return Path(text)
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        pass
    raise argparse.ArgumentTypeError(f"{text}: no such folder")


def fraction(text: str) -> float:
    """A number of 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a fraction of 0 to 1 is needed")
    return value


def printable(text: str) -> str:
    """A name that can be printed."""
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r}: a name that can be printed is needed")
    return text


def names(text: str) -> list[str]:
    """Comma-separated names."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r}: names with commas between them are needed")
    return found


if __name__ == "__main__":
    run_job(main)
