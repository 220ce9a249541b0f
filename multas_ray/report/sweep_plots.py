"""Figures of a search as PNG bytes."""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from multas_ray.report.plots import png, tidy


class SweepTrial(TypedDict):
    """The record of a trial in sweep.json."""

    name: str | None
    parameters: dict[str, Any]
    """Dotted configuration path -> value."""
    value: float | None
    """Highest value of the metric; None if the trial failed before its first evaluation."""
    step: int | None
    """Step of that value."""
    steps: int
    """Step of the last evaluation."""
    error: str | None


def parallel_coordinates(trials: Sequence[SweepTrial], metric: str) -> bytes:
    """Draw an axis per parameter and one for the metric, and a line per trial, coloured by the metric.

    An axis of positive numbers that span more than a decade is logarithmic.

    Args:
        trials: those without a value are left out; at least one has a value.
        metric: name of its axis.

    Returns:
        A PNG.
    """
    best = [trial["value"] for trial in trials if trial["value"] is not None]
    scored = [trial["parameters"] for trial in trials if trial["value"] is not None]
    paths = list(scored[0])
    columns: list[list[Any]] = [[parameters[path] for parameters in scored] for path in paths]
    columns.append(best)
    figure = Figure(figsize=(1.8 * max(2, len(columns)) + 1, 3.8), layout="constrained")
    axis = figure.subplots()
    heights = []
    for place, values in enumerate(columns):
        height, ticks = axis_scale(values)
        heights.append(height)
        axis.axvline(place, color="#888888", linewidth=1)
        for position, label in ticks:
            axis.annotate(
                label,
                (place, position),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
                parse_math=False,
            )
    norm, colors = Normalize(min(best), max(best)), colormaps["viridis"]
    for number in np.argsort(best):
        points = [height[number] for height in heights]
        axis.plot(range(len(columns)), points, color=colors(norm(best[number])), linewidth=1.6, alpha=0.85)
    axis.set_xticks(range(len(columns)), [*paths, metric], fontsize=8, parse_math=False)
    axis.set_yticks([])
    axis.set_ylim(-0.05, 1.05)
    axis.spines[:].set_visible(False)
    return png(figure)


def axis_scale(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Place values on an axis from 0 to 1.

    Returns:
        The values' places, and the axis' ticks: place and label.
    """
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        names = sorted(set(map(str, values)))
        places = {name: (number + 0.5) / len(names) for number, name in enumerate(names)}
        return [places[str(value)] for value in values], [(place, name) for name, place in places.items()]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high > 10 * low
    curve = math.log if logarithmic else float
    span = curve(high) - curve(low) or 1.0
    height = [(curve(value) - curve(low)) / span for value in values]
    middle = math.exp((curve(low) + curve(high)) / 2) if logarithmic else (low + high) / 2
    ticks = {0.0: low, 0.5: middle, 1.0: high} if high > low else {0.0: low}
    return height, [(place, f"{value:.3g}") for place, value in ticks.items()]


def best_so_far(trials: Sequence[SweepTrial], metric: str) -> bytes:
    """Draw the metric of each trial, and the best one up to it.

    Args:
        trials: in the order in which they were drawn; at least one has a value.
        metric: title of the figure.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(6.5, 3.2), layout="constrained")
    axis = figure.subplots()
    points = [(number, trial["value"]) for number, trial in enumerate(trials, 1) if trial["value"] is not None]
    numbers, values = zip(*points, strict=True)
    axis.plot(numbers, values, "o", color="#0072B2", markersize=4, label="trial")
    axis.step(numbers, np.maximum.accumulate(values), where="post", color="#D55E00", label="best so far")
    axis.legend(frameon=False, fontsize=8)
    axis.set_xlabel("trial")
    axis.set_title(metric, fontsize=10, loc="left", parse_math=False)
    tidy(axis)
    return png(figure)
