"""Figures of runs and studies as PNG bytes: learning curves, bars by class, intervals of arms."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multas_ray.report.statistics import estimate, paired_difference

Line = Mapping[str, Any]
"""A line of metrics.jsonl."""

COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#882255", "#999933", "#999999"),
)
"""Colours of runs, in order: Okabe and Ito's seven, which colour-blind readers tell apart, two of Tol's, and grey."""
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
HATCHES = ("", "///", "...", "xxx")
"""Hatching of bars. Beyond ten runs the colours repeat, with another dash, marker or hatching."""
CURVES = {"det/AP": "det/AP [%]", "det/AP50": "det/AP50 [%]", "seg/mIoU": "seg/mIoU [%]"}
"""Evaluation metrics that have a panel; the losses that occur follow."""
RATE = "lr"
COLUMNS = 3
LABELLED_BARS = 40
"""Most bars of a panel that have their numbers written on them."""


def learning_curves(runs: Mapping[str, Sequence[Line]]) -> bytes:
    """Draw small multiples over the step: the main metrics, every loss and the learning rate, one curve per run.

    Args:
        runs: name -> lines of metrics.jsonl. A panel that no run has a value for is left out.

    Returns:
        A PNG.
    """
    present = list(dict.fromkeys(key for lines in runs.values() for line in lines for key in line))
    panels = {key: label for key, label in CURVES.items() if key in present}
    panels |= {key: key for key in sorted(present, key="loss/total".__ne__) if key.startswith("loss/")}
    panels |= {RATE: "learning rate"} if RATE in present else {}
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
        tidy(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    _legend(figure, axes, runs)
    return png(figure)


def class_bars(runs: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw bars by class, one per run, in a panel for detection and one for segmentation.

    Args:
        runs: name -> metrics with det/AP/<class> or seg/IoU/<class> in percent; a task that no run has is left out.

    Returns:
        A PNG.
    """
    return _class_panels(runs, {"det/AP/": "det/AP by class [%]", "seg/IoU/": "seg/IoU by class [%]"}, (0, 105))


def estimates(arms: Mapping[str, Mapping[str, Sequence[float]]], metrics: Sequence[str]) -> bytes:
    """Draw each arm's mean with its 95 % interval, and a dot per seed; one panel per metric.

    Args:
        arms: name -> metric -> one value per seed, in percent.
        metrics: names of the panels; one that no arm has is left out.

    Returns:
        A PNG.
    """
    shown = [metric for metric in metrics if any(metric in own for own in arms.values())]
    columns = min(COLUMNS, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(3.6 * columns, rows * (0.9 + 0.36 * len(arms))), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    names = list(arms)
    for axis, metric in zip(axes, shown, strict=False):
        for place, name in enumerate(names):
            values = arms[name].get(metric)
            if not values:
                continue
            mean, low, high = estimate(values)
            color = COLORS[place % len(COLORS)]
            axis.errorbar(
                mean, place, xerr=[[mean - low], [high - mean]], fmt="D", color=color, markersize=5, capsize=3
            )
            axis.plot(values, [place + 0.22] * len(values), ".", color=color, alpha=0.55, markersize=5)
        axis.set_title(f"{metric} [%]", fontsize=10, loc="left")
        tidy(axis)
        axis.grid(axis="x", color="#dddddd", linewidth=0.7)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    axes[0].set_yticks(range(len(names)), names, parse_math=False)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return png(figure)


def trade_off(
    arms: Mapping[str, Mapping[str, Mapping[int, float]]],
    x: str,
    y: str,
    single: Mapping[str, Mapping[int, float]],
    order: Sequence[str],
) -> bytes:
    """Draw two metrics against each other: every arm's means with their intervals.

    Dotted lines are at the means of the single-task networks.

    Args:
        arms: name -> metric -> seed -> value, in percent.
        x: metric of the horizontal axis.
        y: metric of the vertical axis.
        single: metric -> seed -> value of the single-task networks.
        order: all arms, so that each has one colour in all figures.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axis = figure.subplots()
    for name, metrics in arms.items():
        index = order.index(name)
        (mean_x, low_x, high_x), (mean_y, low_y, high_y) = (estimate(list(metrics[key].values())) for key in (x, y))
        axis.errorbar(
            mean_x,
            mean_y,
            xerr=[[mean_x - low_x], [high_x - mean_x]],
            yerr=[[mean_y - low_y], [high_y - mean_y]],
            fmt=MARKERS[index // len(COLORS) % len(MARKERS)],
            color=COLORS[index % len(COLORS)],
            capsize=3,
            linewidth=1,
            label=name,
        )
    lines: dict[str, Any] = {"color": "#888888", "linestyle": ":", "linewidth": 1.2}
    if x in single:
        axis.axvline(estimate(list(single[x].values())).mean, **lines)
    if y in single:
        axis.axhline(estimate(list(single[y].values())).mean, **lines)
    axis.set_xlabel(f"{x} [%]")
    axis.set_ylabel(f"{y} [%]")
    if single:
        axis.set_title("dotted: single-task networks", fontsize=9, loc="left")
    tidy(axis)
    _legend(figure, [axis], arms)
    return png(figure)


def class_differences(
    arms: Mapping[str, Mapping[str, Mapping[int, float]]],
    single: Mapping[str, Mapping[int, float]],
    order: Sequence[str],
) -> bytes:
    """Draw bars by class: each arm's mean difference from the single-task networks of the same seeds.

    Args:
        arms: name -> metric -> seed -> value in percent; det/AP/<class> and seg/IoU/<class> are shown, a panel each.
        single: metric -> seed -> value of the single-task networks.
        order: all arms, so that each has one colour in all figures.

    Returns:
        A PNG.
    """
    shown: dict[str, dict[str, float]] = {}
    for name, metrics in arms.items():
        pairs = {key: paired_difference(values, single.get(key, {})) for key, values in metrics.items()}
        shown[name] = {key: pair.mean for key, pair in pairs.items() if pair is not None}
    titles = {"det/AP/": "det/AP by class, difference", "seg/IoU/": "seg/IoU by class, difference"}
    return _class_panels(shown, titles, None, order)


def mean_curves(arms: Mapping[str, Sequence[Sequence[Line]]]) -> bytes:
    """Draw the mean evaluation of each arm over the step, at steps that all of its runs have.

    Args:
        arms: name -> evaluations of each run.

    Returns:
        A PNG.
    """
    means: dict[str, list[Line]] = {}
    for name, runs in arms.items():
        by_step = [{line["step"]: line for line in lines} for lines in runs]
        steps = sorted(set.intersection(*(set(lines) for lines in by_step))) if by_step else []
        means[name] = [
            {"step": step}
            | {
                key: sum(lines[step][key] for lines in by_step) / len(by_step)
                for key in CURVES
                if all(key in lines[step] for lines in by_step)
            }
            for step in steps
        ]
    return learning_curves(means)


def scaling_curves(rates: Mapping[int, Mapping[int, float]], alone: float) -> bytes:
    """Draw images per second over the number of student workers, one curve per number of teacher replicas.

    Args:
        rates: replicas -> workers -> images per second.
        alone: images per second of one worker without teachers. The dotted line is its multiples.

    Returns:
        A PNG.
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
    tidy(axis)
    _legend(figure, [axis], {**dict.fromkeys(names.values()), "students alone": None})
    return png(figure)


def _class_panels(
    runs: Mapping[str, Mapping[str, Any]],
    tasks: Mapping[str, str],
    limits: tuple[float, float] | None,
    order: Sequence[str] | None = None,
) -> bytes:
    """Draw bars by class, one per run; one panel per task that a run has metrics of.

    Args:
        runs: name -> metrics.
        tasks: prefix of the metrics by class -> title of their panel.
        limits: ends of the bars' axis; None fits them, and writes no numbers on the bars.
        order: runs in the order of their colours; default: that of `runs`.
    """
    panels = {prefix: _classes(runs.values(), prefix) for prefix in tasks}
    panels = {prefix: classes for prefix, classes in panels.items() if classes}
    order = list(runs) if order is None else order
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
                **_fill(order.index(name)),
            )
            if limits is not None and widest * len(runs) <= LABELLED_BARS:
                axis.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        axis.set_xticks(range(len(classes)), classes, rotation=0 if widest <= 10 else 60, fontsize=8, parse_math=False)
        axis.set_title(tasks[prefix], fontsize=10, loc="left")
        axis.set_ylim(limits)
        axis.margins(x=0.01)
        tidy(axis)
    if not panels:
        axes[0].set_axis_off()
    _legend(figure, axes, runs)
    return png(figure)


def _classes(metrics: Iterable[Mapping[str, Any]], prefix: str) -> list[str]:
    """Classes that a run has a metric of, in order of first occurrence."""
    return list(dict.fromkeys(key.removeprefix(prefix) for run in metrics for key in run if key.startswith(prefix)))


def _style(index: int) -> dict[str, Any]:
    dash = DASHES[index // len(COLORS) % len(DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dash, "linewidth": 1.5}


def _fill(index: int) -> dict[str, Any]:
    hatch = HATCHES[index // len(COLORS) % len(HATCHES)]
    return {"color": COLORS[index % len(COLORS)], "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def tidy(axis: Axes) -> None:
    """Give axes the look that all figures share."""
    axis.grid(axis="y", color="#dddddd", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _legend(figure: Figure, axes: Sequence[Axes], runs: Mapping[str, Any]) -> None:
    """Draw one key for all panels, above them; every run's handle is in some panel, rarely in all."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    shown = [name for name in runs if name in handles]
    if shown:
        key = figure.legend([handles[name] for name in shown], shown, loc="outside upper left", ncols=4, frameon=False)
        for text in key.get_texts():
            text.set_parse_math(False)  # a name with a $ is no formula


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    # Not pyplot: its global state is neither thread-safe nor freed.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
