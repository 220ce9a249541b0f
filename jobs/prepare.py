"""Prepare a data set folder from annotated images in one of many formats, generated scenes, or part of a data set.

python jobs/prepare.py voc --root VOC2012 --det MXEdet/train --seg MXEseg/train --val Main/val --out data/voc
python jobs/prepare.py voc --root my_labels --det all --out data/mine
python jobs/prepare.py coco --images train2017 --annotations instances_train2017.json --split train --out data/coco
python jobs/prepare.py yolo --data my_set/data.yaml --missing empty --out data/mine
python jobs/prepare.py masks --images images --masks annotations --split train,val --preset ade20k --out data/ade
python jobs/prepare.py bdd100k --root bdd100k --out data/bdd100k
python jobs/prepare.py huggingface --root my_parquet --boxes xyxy --out data/mine
python jobs/prepare.py scenes --train 1000 --val 200 --partial det=0.5,seg=0.5 --out data/scenes
python jobs/prepare.py holdout --data data/voc --fraction 0.2 --out data/voc_tuning
python jobs/prepare.py coco --images train2017 --annotations instances_train2017.json --split train \
    --workers 8 --max-side 640 --out s3://bucket/coco

Images are read, checked and encoded by tasks on Ray: here, or on the cluster of RAY_ADDRESS, whose nodes must all find
the images and --out. The files do not depend on the number of tasks. A job that was killed goes on where it was when
the same command runs again; until it ends, a data set that was at --out stays as it is.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table

from multas_ray.cli import Parser, at_least, run_job
from multas_ray.errors import one_line
from multas_ray.formats import FORMATS
from multas_ray.formats.flags import add_flags, fraction, parsed_options
from multas_ray.stop import GOES_ON, on_stop
from multas_ray.terminal import terminal

if TYPE_CHECKING:
    from multas_ray.data.summary import Summary
    from multas_ray.formats.source import Source

FEW = 2000
"""Number of images that are read sooner than Ray is started."""
OLDER_NAMES = {"holdout": ["carve"]}
"""Names that formats had before, which scripts may still use."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, write the data set, print what is in it."""
    words = sys.argv[1:] if arguments is None else arguments
    args = parse(words)
    source: Source = args.format.read(parsed_options(args.format.Options, args))
    if args.name:
        source = replace(source, name=args.name)
    summary = write(source, args, command=shlex.join(["python", "jobs/prepare.py", *without_workers(words)]))
    show(summary, args.out, source.remarks)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line; `format` is the module of the chosen format."""
    common = Parser(add_help=False)
    common.add_argument(
        "--out", required=True, help="data set folder, or bucket; a further split is added to one that is there"
    )
    common.add_argument("--add", action="store_true", help="add rows to a split that is there already")
    common.add_argument("--name", type=printable, help="name of the data set (default: of the source)")
    common.add_argument("--max-rejected", type=fraction, default=0.01, help="largest share of bad rows (default 0.01)")
    common.add_argument("--overwrite", action="store_true", help="replace the data set at --out, with all its splits")
    common.add_argument(
        "--max-side",
        type=at_least(1),
        help="shrink images with a longer side to it, in pixels, with their boxes and masks (default: none)",
    )
    add_workers(common)

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = parser.add_subparsers(dest="source", required=True)
    for name, module in FORMATS.items():
        help_line = (module.__doc__ or "").partition("\n")[0].rstrip(".")
        sub = formats.add_parser(name, aliases=OLDER_NAMES.get(name, []), parents=[common], help=help_line)
        add_flags(sub, module.Options)
        sub.set_defaults(format=module)
    return parser.parse_args(words)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`, on which the result does not depend."""
    parser.add_argument(
        "--workers",
        type=at_least(1),
        help="images that are read at a time; 1 does without Ray (default: the cores of this machine, or of the "
        f"cluster; 1 for fewer than {FEW} images)",
    )


def without_workers(words: Sequence[str]) -> list[str]:
    """The command line without `--workers`: the same data set has the same description."""
    parser = Parser(add_help=False)
    add_workers(parser)
    return parser.parse_known_args(words)[1]


def write(source: Source, args: argparse.Namespace, command: str) -> Summary:
    """Write the data set, with a progress bar."""
    from multas_ray.console import count_up
    from multas_ray.data.writer import write_dataset

    on_stop(GOES_ON)
    total = sum(len(split.items) for split in source.splits.values())
    with count_up("images") as count:
        done = 0

        def advance(split: str, items: int) -> None:
            nonlocal done
            done += items
            count(done, total)

        return write_dataset(
            args.out,
            source,
            command=command,
            max_rejected=args.max_rejected,
            overwrite=args.overwrite,
            add=args.add,
            workers=args.workers or default_workers(total),
            max_side=args.max_side,
            advance=advance,
        )


def default_workers(images: int) -> int:
    """The cores, here or of the cluster; one for a few images."""
    if images < FEW:
        return 1
    from multas_ray.ray_setup import cluster_cores

    return max(1, cluster_cores())


def show(summary: Summary, out: str, remarks: Sequence[str] = ()) -> None:
    """Print rows by split and task mask, and what was rejected, dropped, clipped, or taken for something."""
    from multas_ray.tasks.segmentation.rows import IGNORE

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


def printable(text: str) -> str:
    """A name that can be printed."""
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r}: a name that can be printed is needed")
    return text


if __name__ == "__main__":
    run_job(main)
