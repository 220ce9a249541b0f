"""Print what a data set holds, by split, task mask and class, and write a picture grid of samples.

python jobs/describe.py data/animals --samples 16
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from multas_ray.cli import Parser, at_least, run_job
from multas_ray.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from multas_ray.data.describe import SplitCounts
    from multas_ray.data.index import Index
    from multas_ray.data.schema import DatasetInfo
    from multas_ray.report.pictures import Palette, Picture

COLUMNS = 4
"""Number of pictures side by side."""
MAX_NAMED = 5
"""Largest number of unusable rows that are named."""


def main() -> None:
    """Parse the command line, print the tables, and write the pictures."""
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", help="data set folder: a path or an s3:// or gs:// URI")
    parser.add_argument("--out", type=Path, help="folder of the picture grids (default: runs/describe/<name>)")
    parser.add_argument("--samples", type=at_least(0), default=16, help="pictures of each split (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pictures (default: %(default)s)")
    arguments = parser.parse_args()

    from multas_ray.data.describe import choose
    from multas_ray.data.index import read_index
    from multas_ray.data.schema import read_info
    from multas_ray.report.pictures import Palette, grid
    from multas_ray.terminal import terminal

    console = terminal()
    info = read_info(arguments.dataset)
    indexes = {split: read_index(arguments.dataset, split) for split in info.splits}
    counts = count_splits(indexes, info, console)
    console.print(rows_table(info, counts))
    for split, split_counts in counts.items():
        console.print(classes_table(info, split, split_counts))
        print_rejected(split, split_counts, console)
    palette = Palette(info.det_classes, info.seg_classes)
    for split, index in indexes.items():
        drawn = (draw(index, row, palette) for row in choose(index, arguments.samples, arguments.seed))
        pictures = [picture for picture in drawn if picture is not None]
        file = (arguments.out or Path("runs/describe") / info.name) / f"{split}.png"
        rows = [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(grid(rows, [], palette))
        console.print(f"{split}: pictures in {file}", soft_wrap=True)


def count_splits(indexes: dict[str, Index], info: DatasetInfo, console: Console) -> dict[str, SplitCounts]:
    """Count every split behind a progress bar."""
    from multas_ray.data.describe import count

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars = {split: progress.add_task(f"counting {split}", total=len(index)) for split, index in indexes.items()}
        return {split: count(index, info, partial(progress.advance, bars[split])) for split, index in indexes.items()}


def rows_table(info: DatasetInfo, counts: dict[str, SplitCounts]) -> Table:
    """Make the table of rows by split and task mask."""
    from multas_ray.data.schema import TASK_MASKS

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
    from multas_ray.data.read import read_sample
    from multas_ray.data.reject import Reject
    from multas_ray.data.schema import TASK_MASKS
    from multas_ray.report.overlays import draw_truth
    from multas_ray.report.pictures import captioned

    try:
        values, sample = read_sample(index, row)
    except Reject:
        return None
    mask = TASK_MASKS[values["has_det"] + 2 * values["has_seg"]]
    return captioned(draw_truth(sample, palette), f"{values['image_id']} · {mask}")


if __name__ == "__main__":
    run_job(main)
