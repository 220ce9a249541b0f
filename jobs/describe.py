"""Print what a data set holds, or all data sets of a configuration, by class, and write a picture grid of samples.

python jobs/describe.py data/animals --samples 16
python jobs/describe.py --config run.yaml
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from multas_ray.cli import Parser, at_least, run_job
from multas_ray.config import TASKS, Task
from multas_ray.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from multas_ray.data.describe import SplitCounts
    from multas_ray.data.index import Index
    from multas_ray.data.schema import DatasetInfo
    from multas_ray.data.sources import Sources
    from multas_ray.report.pictures import Palette, Picture

COLUMNS = 4
"""Number of pictures side by side."""
MAX_NAMED = 5
"""Largest number of unusable rows that are named."""


def main() -> None:
    """Parse the command line, print the tables, and write the pictures."""
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", nargs="*", help="data set folder: a path or a URI; with --config: path=value of it")
    parser.add_argument("--config", metavar="FILE", help="YAML configuration whose data sets are described together")
    parser.add_argument("--out", type=Path, help="folder of the picture grids (default: runs/describe/<name>)")
    parser.add_argument("--samples", type=at_least(0), default=16, help="pictures of each split (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pictures (default: %(default)s)")
    arguments = parser.parse_intermixed_args()
    if arguments.config is None and len(arguments.dataset) != 1:
        parser.error("one data set, or --config, is needed")

    from multas_ray.terminal import terminal

    console = terminal()
    if arguments.config is None:
        info, indexes = describe_one(arguments.dataset[0], console)
    else:
        info, indexes = describe_all(arguments.config, arguments.dataset, console)

    from multas_ray.data.describe import choose
    from multas_ray.report.pictures import Palette, grid

    palette = Palette(info.det_classes, info.seg_classes)
    for split, index in indexes.items():
        drawn = (draw(index, row, palette) for row in choose(index, arguments.samples, arguments.seed))
        pictures = [picture for picture in drawn if picture is not None]
        file = (arguments.out or Path("runs/describe") / info.name) / f"{split}.png"
        rows = [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(grid(rows, [], palette))
        console.print(f"{split}: pictures in {file}", soft_wrap=True)


def describe_one(dataset: str, console: Console) -> tuple[DatasetInfo, dict[str, Index]]:
    """Print the tables of a data set, and return its description and its splits."""
    from multas_ray.data.index import read_index
    from multas_ray.data.schema import read_info

    info = read_info(dataset)
    indexes = {split: read_index(dataset, split) for split in info.splits}
    counts = count_splits(indexes, info, console)
    console.print(rows_table(info, counts))
    for split, split_counts in counts.items():
        console.print(classes_table(info, split, split_counts))
        print_rejected(split, split_counts, console)
    return info, indexes


def describe_all(config: str, overrides: list[str], console: Console) -> tuple[DatasetInfo, dict[str, Index]]:
    """Print the label space of a configuration's data sets, and return their joint description and rows by role."""
    from multas_ray.config_file import load_config
    from multas_ray.data.sources import ROLES, read_sources

    sources = read_sources(load_config(config, overrides).data)
    joined: dict[str, Index] = {}
    for role in ROLES:
        counts: dict[str, SplitCounts] = {}
        parts = sources.parts(role)
        joined[role] = sources.joined(parts)
        for name, index in parts.items():
            counts |= count_splits({name: index}, sources.infos[name], console)
            print_rejected(name or role, counts[name], console)
        console.print(label_space_table(sources, role, counts))
    return sources.info, joined


def label_space_table(sources: Sources, role: str, counts: dict[str, SplitCounts]) -> Table:
    """Make the table of class by data set: its boxes and its share of the pixels, or that nobody looked for it."""
    heads = [" ".join(filter(None, [name, what])) for name in counts for what in ("boxes", "pixels")]
    table = numbers(f"{role}: what each data set says of each class", ["class", *heads])
    cells = {name: source_cells(sources, name, each) for name, each in counts.items()}
    for label in dict.fromkeys([*sources.info.seg_classes, *sources.info.det_classes]):
        row = [cells[name][task].get(label, "") for name in counts for task in TASKS]
        table.add_row(label, *row)
    images = [f"{each.rows[task] + each.rows['both']:,}" for each in counts.values() for task in TASKS]
    table.add_section()
    table.add_row("(images)", *images)
    return table


def source_cells(sources: Sources, name: str, counts: SplitCounts) -> dict[Task, dict[str, str]]:
    """Return the cells of a data set by task and class of the run; none of a task that it is not annotated for."""
    from multas_ray.data.classes import NO_OBJECT, ClassMap

    found = {"det": counts.boxes, "seg": counts.pixels}
    cells: dict[Task, dict[str, str]] = {}
    for task, own in sources.infos[name].classes.items():
        names = sources.info.classes[task]
        each = sources.maps[name].get(task) or ClassMap(tuple(range(len(own))), len(names))
        sums = [0] * len(names)
        for target, number in zip(each.targets, found[task].tolist(), strict=False):
            if target is not None and target != NO_OBJECT:
                sums[target] += number
        pixels = max(1, int(counts.pixels.sum()))
        shown = [f"{number:,}" if task == "det" else f"{number / pixels:.2%}" for number in sums]
        annotated, unlabelled = counts.rows[task] + counts.rows["both"] > 0, each.unlabelled
        cells[task] = {
            label: "not looked for" if place in unlabelled else shown[place]
            for place, label in enumerate(names)
            if annotated
        }
    return cells


def count_splits(indexes: dict[str, Index], info: DatasetInfo, console: Console) -> dict[str, SplitCounts]:
    """Count every split behind a progress bar."""
    from multas_ray.data.describe import count

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars = {split: progress.add_task(f"counting {split}", total=len(index)) for split, index in indexes.items()}
        return {split: count(index, info, partial(progress.advance, bars[split])) for split, index in indexes.items()}


def rows_table(info: DatasetInfo, counts: dict[str, SplitCounts]) -> Table:
    """Make the table of rows by split and task mask."""
    from multas_ray.config import TASK_MASKS

    table = numbers(f"{info.name}: images by split and task mask", ["split", *TASK_MASKS, "total"])
    for split, split_counts in counts.items():
        rows = split_counts.rows
        table.add_row(split, *(f"{rows[mask]:,}" for mask in TASK_MASKS), f"{sum(rows.values()):,}")
    return table


def classes_table(info: DatasetInfo, split: str, counts: SplitCounts) -> Table:
    """Make the table of a split by class. Cells of a task that does not have the class are blank."""
    from multas_ray.tasks.segmentation.rows import IGNORE

    table = numbers(f"{split}: by class", ["class", "boxes", "difficult", "images", "pixels", "images"])
    values = {name: value for value, name in enumerate(info.seg_classes)} | {"(ignore)": IGNORE}
    share = counts.pixels / max(1, counts.pixels.sum())
    for name in dict.fromkeys([*info.seg_classes, *info.det_classes, "(ignore)"]):
        cells = [""] * 5
        if name in info.det_classes:
            label = info.det_classes.index(name)
            cells[:3] = (f"{array[label]:,}" for array in (counts.boxes, counts.difficult, counts.box_images))
        if name in values:
            cells[3:] = f"{share[values[name]]:.2%}", f"{counts.pixel_images[values[name]]:,}"
        table.add_row(name, *cells)
    return table


def print_rejected(split: str, counts: SplitCounts, console: Console) -> None:
    """Print the number of rows that a training leaves out, and name the first of them."""
    if not counts.rejected:
        return
    console.print(f"{split}: {len(counts.rejected)} rows break the data contract; a training leaves them out")
    for reject in counts.rejected[:MAX_NAMED]:
        line = f"    {one_line(reject.image_id, 100)}: {reject.reason} ({reject.detail})"
        console.print(line, highlight=False, soft_wrap=True)


def numbers(title: str, heads: list[str]) -> Table:
    """Make an empty table of numbers with names in its first column."""
    table = Table(title=title, title_justify="left")
    for position, head in enumerate(heads):
        table.add_column(head, justify="right" if position else "left")
    return table


def draw(index: Index, row: int, palette: Palette) -> Picture | None:
    """Draw a row's image with its annotation, under its id and task mask; None if the row cannot be used."""
    from multas_ray.config import TASK_MASKS
    from multas_ray.data.read import read_sample
    from multas_ray.data.reject import Reject
    from multas_ray.report.overlays import draw_truth
    from multas_ray.report.pictures import captioned

    try:
        values, sample = read_sample(index, row)
        picture = draw_truth(sample, palette)
    except Reject:
        return None
    mask = TASK_MASKS[values["has_det"] + 2 * values["has_seg"]]
    return captioned(picture, f"{values['image_id']} · {mask}")


if __name__ == "__main__":
    run_job(main)
