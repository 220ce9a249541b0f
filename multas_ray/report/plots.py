"""Figures as PNG bytes: learning curves and bars by class."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Line = Mapping[str, Any]
"""One line of metrics.jsonl."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of the runs, in order: Okabe and Ito's, which colour-blind readers tell apart."""
DASHES = ("-", "--", ":", "-.")
"""Beyond seven runs the colours come again, with another dash."""
CURVES = {"det/AP": "det/AP [%]", "det/AP50": "det/AP50 [%]", "seg/mIoU": "seg/mIoU [%]"}
"""Evaluation metrics that have a panel; the losses that occur follow."""
COLUMNS = 3
LABELLED_BARS = 40
"""A panel of more bars leaves out their numbers."""


def learning_curves(runs: Mapping[str, Sequence[Line]]) -> bytes:
    """Small multiples over the step: the three main metrics, then every loss, one curve a run.

    Args:
        runs: name -> lines of metrics.jsonl. A panel that no run has a value for is left out.
    """
    present = list(dict.fromkeys(key for lines in runs.values() for line in lines for key in line))
    panels = {key: label for key, label in CURVES.items() if key in present}
    panels |= {key: key for key in sorted(present, key="loss/total".__ne__) if key.startswith("loss/")}
    columns = min(COLUMNS, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(3.6 * columns, 2.6 * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for axis, (key, label) in zip(axes, panels.items(), strict=False):
        for index, (name, lines) in enumerate(runs.items()):
            points = [(line["step"], line[key]) for line in lines if key in line]
            # Evaluations are few: a lone one would not show without its dot.
            marker = "o" if key in CURVES else None
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=4, **_style(index))
        axis.set_title(label, fontsize=10, loc="left")
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.tick_params(labelbottom=True)
        _tidy(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    _legend(figure, axes, runs)
    return _png(figure)


def class_bars(runs: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Bars by class, a panel for detection and one for segmentation, a bar a run.

    Args:
        runs: name -> metrics with det/AP/<class> or seg/IoU/<class> in percent; a task that no run has is left out.
    """
    tasks = {"det/AP/": "det/AP by class [%]", "seg/IoU/": "seg/IoU by class [%]"}
    panels = {prefix: _classes(runs.values(), prefix) for prefix in tasks}
    panels = {prefix: classes for prefix, classes in panels.items() if classes}
    widest = max((len(classes) for classes in panels.values()), default=1)
    figure = Figure(
        figsize=(min(40.0, max(7.0, 1.5 + widest * (0.35 + 0.18 * len(runs)))), 2.6 * max(1, len(panels)) + 0.5),
        layout="constrained",
    )
    axes = list(figure.subplots(max(1, len(panels)), 1, squeeze=False).flat)
    width = 0.8 / max(1, len(runs))
    for axis, (prefix, classes) in zip(axes, panels.items(), strict=False):
        for index, (name, metrics) in enumerate(runs.items()):
            offset = (index - (len(runs) - 1) / 2) * width
            bars = axis.bar(
                [position + offset for position in range(len(classes))],
                [metrics.get(prefix + label, math.nan) for label in classes],
                width,
                label=name,
                color=COLORS[index % len(COLORS)],
            )
            if widest * len(runs) <= LABELLED_BARS:
                axis.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        axis.set_xticks(range(len(classes)), classes, rotation=0 if widest <= 10 else 60, fontsize=8, parse_math=False)
        axis.set_title(tasks[prefix], fontsize=10, loc="left")
        axis.set_ylim(0, 105)
        axis.margins(x=0.01)
        _tidy(axis)
    if not panels:
        axes[0].set_axis_off()
    _legend(figure, axes, runs)
    return _png(figure)


def scaling_curves(rates: Mapping[int, Mapping[int, float]], alone: float) -> bytes:
    """Images a second over the number of student workers, one curve a number of teacher replicas.

    Args:
        rates: replicas -> workers -> images a second.
        alone: of one worker without teachers; the dotted line is as many times that as there are workers.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axis = figure.subplots()
    names = {replicas: f"{replicas} replica{'s' * (replicas > 1)}" for replicas in rates}
    for index, (replicas, by_workers) in enumerate(rates.items()):
        points = sorted(by_workers.items())
        axis.plot(*zip(*points, strict=True), label=names[replicas], marker="o", markersize=4, **_style(index))
    workers = sorted({count for by_workers in rates.values() for count in by_workers})
    axis.plot(workers, [alone * count for count in workers], ":", color="#888888", label="students alone")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(workers, [str(count) for count in workers])
    axis.set_xlabel("student workers")
    axis.set_title("images a second, by replicas of each teacher (simulated accelerators)", fontsize=10, loc="left")
    ticks = [alone * count for count in workers]
    axis.set_yticks(ticks, [f"{tick:.0f}" for tick in ticks])
    _tidy(axis)
    _legend(figure, [axis], {**dict.fromkeys(names.values()), "students alone": None})
    return _png(figure)


def _classes(metrics: Iterable[Mapping[str, Any]], prefix: str) -> list[str]:
    """Classes of any run in the order in which they first occur."""
    return list(dict.fromkeys(key.removeprefix(prefix) for run in metrics for key in run if key.startswith(prefix)))


def _style(index: int) -> dict[str, Any]:
    dash = DASHES[index // len(COLORS) % len(DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dash, "linewidth": 1.5}


def _tidy(axis: Axes) -> None:
    axis.grid(axis="y", color="#dddddd", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _legend(figure: Figure, axes: Sequence[Axes], runs: Mapping[str, Any]) -> None:
    """One key for all panels, above them; every run's handle is in some panel, rarely in all."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    shown = [name for name in runs if name in handles]
    if shown:
        key = figure.legend([handles[name] for name in shown], shown, loc="outside upper left", ncols=4, frameon=False)
        for text in key.get_texts():
            text.set_parse_math(False)  # a name with a $ is no formula


def _png(figure: Figure) -> bytes:
    # No pyplot: its global state is neither thread-safe nor freed.
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
