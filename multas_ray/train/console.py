"""What a person at the terminal sees of runs: progress while they last, a table of their results."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from multas_ray.config import Config
from multas_ray.report.html import cell, columns_of
from multas_ray.storage import StoragePath
from multas_ray.train.tracking import newest_error, read_metrics

POLL_S = 1.0
PLAIN_EVERY_S = 30.0
"""Between two lines where the output is no terminal, such as a job's log."""
WIDE = 160
"""Columns of a table that goes to no terminal."""
HEADLINE = ("det/AP50", "det/AP", "seg/mIoU")


@contextmanager
def follow(configs: Sequence[Config]) -> Iterator[None]:
    """Show the progress of runs while the block lasts: bars on a terminal, now and then a line elsewhere.

    It reads the runs' metrics files, so it needs nothing from the workers.
    """
    done = threading.Event()
    show = _bars if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=show, args=(configs, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _bars(configs: Sequence[Config], done: threading.Event) -> None:
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: list[TaskID] = [
            progress.add_task(StoragePath(config.train.run).name, total=config.train.steps, news="starting")
            for config in configs
        ]
        while not done.wait(POLL_S):
            for config, task in zip(configs, tasks, strict=True):
                step, news = _state(StoragePath(config.train.run))
                progress.update(task, completed=step, news=news or "starting")


def _lines(configs: Sequence[Config], done: threading.Event) -> None:
    last: dict[str, int] = {}
    printed = monotonic()
    while not done.wait(POLL_S):
        if monotonic() - printed < PLAIN_EVERY_S:
            continue
        printed = monotonic()
        for config in configs:
            step, news = _state(StoragePath(config.train.run))
            if news and step != last.get(config.train.run):
                last[config.train.run] = step
                print(
                    f"{StoragePath(config.train.run).name}: step {step}/{config.train.steps}  {news}", file=sys.stderr
                )


def _state(run: StoragePath) -> tuple[int, str]:
    """The newest step of a run, and in words what it logged last."""
    lines = read_metrics(run)
    news = []
    logged = next((line for line in reversed(lines) if "loss/total" in line), None)
    if logged:
        news.append(f"loss {logged['loss/total']:.3f}  {logged['throughput/images_per_s']:.1f} img/s")
    scored = next((line for line in reversed(lines) if "score" in line), None)
    if scored:
        news.append("  ".join(f"{name} {scored[name]:.1f}" for name in HEADLINE if name in scored))
    error = newest_error(run)
    if error:
        news.append(f"after an error: {error}")
    return max((line["step"] for line in lines), default=0), "  ".join(news)


@contextmanager
def count_up(things: str) -> Iterator[Callable[[int, int], None]]:
    """Something to tell how many of how many things are done: a bar on a terminal, now and then a line elsewhere."""
    columns = (TextColumn(things), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task(things, total=None)
        said = monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal said
            bars.update(bar, completed=done, total=total)
            if bars.disable and monotonic() - said > PLAIN_EVERY_S:
                print(f"{done} of {total} {things}", file=sys.stderr, flush=True)
                said = monotonic()

        yield tell


def print_results(results: Mapping[str, Mapping[str, Any]], title: str | None = None) -> None:
    """A table of finished runs: a row each, with their final headline metrics and seconds."""
    table = Table("run", *HEADLINE, "seconds", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        final = result["final"]
        cells = [f"{final[key]:.1f}" if key in final else "-" for key in HEADLINE]
        table.add_row(name, *cells, f"{result['seconds']:.0f}")
    _output().print(table)


def print_rows(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """A table whose columns are the rows' keys."""
    columns = columns_of(rows)
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(cell(row.get(column, "")) for column in columns))
    _output().print(table)


def _output() -> Console:
    """Standard output; where it is no terminal, such as a job's log, wide enough for a table."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
