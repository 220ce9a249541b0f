"""Progress of runs and jobs on the terminal, and tables of their results."""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic, time
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from multas_ray.checkpoint.folder import newest_written
from multas_ray.config import Config
from multas_ray.evaluate.scores import HEADLINE
from multas_ray.report.tables import table_text
from multas_ray.run_folder import newest_error, read_metrics, read_progress
from multas_ray.storage import StoragePath
from multas_ray.terminal import terminal

POLL_S, BUCKET_POLL_S = 1.0, 10.0
"""Seconds between two looks into a run folder on a local disk and in a bucket."""
PLAIN_EVERY_S = 30.0
"""Seconds between two lines where the output is no terminal, such as a job's log."""
PACE = 60
"""Number of newest looks from which the remaining time is estimated."""
CLOCKS_S = 2.0
"""Seconds by which the clocks of two machines may differ."""
RATE = "throughput/images_per_s"


@contextmanager
def follow(configs: Sequence[Config]) -> Iterator[None]:
    """Show the progress of runs inside the block: bars on a terminal, a line from time to time elsewhere.

    Progress is read from the run folders and needs nothing from the workers.
    """
    done = threading.Event()
    show = _bars if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=show, args=([_Run(config) for config in configs], done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Run:
    """Progress of a run, as its folder shows it."""

    def __init__(self, config: Config) -> None:
        self.folder, self.steps = StoragePath(config.train.run), config.train.steps
        # Files that are older were written by an earlier job. The writing machine may have another clock.
        self.began = time() - CLOCKS_S
        self.name = self.folder.name
        self.step, self.starting, self.news = 0, "", ""
        self.seen: deque[tuple[float, int]] = deque(maxlen=PACE)

    def look(self) -> None:
        """Read the newest step, the part of the run that is being started before it, and the news in words."""
        lines = read_metrics(self.folder)
        progress = read_progress(self.folder, self.began)
        self.starting = progress.get("starting", "")
        self.step = max([progress.get("step", 0), *(line["step"] for line in lines)])
        if "step" in progress and (not self.seen or self.seen[-1][1] < self.step):
            self.seen.append((monotonic(), self.step))
        news = [f"starting {self.starting}"] if self.starting else []
        logged = next((line for line in reversed(lines) if {"loss/total", RATE} <= line.keys()), None)
        if logged:
            news.append(f"loss {logged['loss/total']:.3f}  {logged[RATE]:.1f} img/s")
        scored = next((line for line in reversed(lines) if "score" in line), None)
        if scored:
            news.append("  ".join(f"{name} {scored[name]:.1f}" for name in HEADLINE if name in scored))
        error = newest_error(self.folder)
        if error:
            news.append(f"after an error: {error}")
        self.news = "  ".join(news)

    def left(self) -> str:
        """Estimate the remaining time from the pace of the newest steps; empty before a second step was seen."""
        if len(self.seen) < 2:
            return ""
        (before, first), (after, last) = self.seen[0], self.seen[-1]
        return f"{timedelta(seconds=round((self.steps - last) * (after - before) / (last - first)))} left"


def _bars(runs: Sequence[_Run], done: threading.Event) -> None:
    columns = (
        TextColumn("{task.description:>12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[news]}", markup=False),
    )
    with Progress(*columns, console=terminal(stderr=True)) as progress:
        tasks = [progress.add_task(run.name, total=run.steps, news="starting", left="") for run in runs]
        while not _wait(runs, done):
            for run, task in zip(runs, tasks, strict=True):
                run.look()
                news = run.news or ("" if run.step else "starting")
                progress.update(task, completed=run.step, news=news, left=run.left())


def _lines(runs: Sequence[_Run], done: threading.Event) -> None:
    printed_lines: dict[str, str] = {}
    printed = monotonic()
    while not _wait(runs, done):
        due = monotonic() - printed >= PLAIN_EVERY_S
        if due:
            printed = monotonic()
        for run in runs:
            run.look()
            if run.starting and run.starting != printed_lines.get(run.name):
                print(f"{run.name}: starting {run.starting}", file=sys.stderr, flush=True)
                printed_lines[run.name] = run.starting
            elif due and not run.starting:
                line = "  ".join(filter(None, (f"{run.name}: step {run.step}/{run.steps}", run.news, run.left())))
                if line != printed_lines.get(run.name) and run.step:
                    print(line, file=sys.stderr, flush=True)
                    printed_lines[run.name] = line


def _wait(runs: Sequence[_Run], done: threading.Event) -> bool:
    """Wait until it is time to look again, in buckets longer. Whether the runs are over."""
    return done.wait(POLL_S if all(run.folder.local for run in runs) else BUCKET_POLL_S)


def stopping(config: Config) -> str:
    """Make the line that a run prints when it is stopped by a signal."""
    run = StoragePath(config.train.run)
    step = newest_written(run)
    taken = max([step, *(line["step"] for line in read_metrics(run)), read_progress(run, 0).get("step", 0)])
    return f"stopping at step {taken}; the same command goes on from step {step}"


@contextmanager
def count_up(things: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a job inside the block: a bar on a terminal, a line from time to time elsewhere.

    Args:
        things: plural noun of what is counted.

    Yields:
        A function that takes the number of things done and their total number.
    """
    columns = (TextColumn(things), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=terminal(stderr=True), disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task(things, total=None)
        printed, counted = monotonic(), 0

        def advance(done: int, total: int) -> None:
            nonlocal printed, counted
            bars.update(bar, completed=done, total=total)
            passed = monotonic() - printed
            if bars.disable and passed > PLAIN_EVERY_S:
                rate = (done - counted) / passed
                print(f"{done} of {total} {things}, {rate:.1f}/s", file=sys.stderr, flush=True)
                printed, counted = monotonic(), done

        yield advance


class _Rate(ProgressColumn):
    """Number of things done a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


def print_results(results: Mapping[str, Mapping[str, Any]], title: str | None = None) -> None:
    """Print a table of finished runs: one row each, with the final headline metrics and the seconds."""
    table = Table("run", *HEADLINE, "seconds", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        final = result["final"]
        cells = [f"{final[key]:.1f}" if key in final else "-" for key in HEADLINE]
        table.add_row(name, *cells, f"{result['seconds']:.0f}")
    terminal().print(table)


def print_rows(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print a table whose columns are the keys of its rows."""
    columns, cells = table_text(rows)
    table = Table(*columns, title=title)
    for row in cells:
        table.add_row(*row)
    terminal().print(table)
