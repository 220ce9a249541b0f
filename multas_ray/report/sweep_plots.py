"""Figures of a search as PNG bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from multas_ray.report.plots import png, tidy

Trial = Mapping[str, Any]
"""parameters (path -> value) and value (of the metric, or None)."""


def parallel_coordinates(trials: Sequence[Trial], metric: str) -> bytes:
    """An axis a parameter and one for the metric, a line a trial, coloured by the metric; failed trials are left out.

    An axis of positive numbers that span more than a decade is logarithmic.

    Args:
        trials: one of them, at least, did not fail.
    """
    scored = [trial for trial in trials if trial["value"] is not None]
    paths = list(scored[0]["parameters"])
    columns = [[trial["parameters"][path] for trial in scored] for path in paths]
    columns.append([trial["value"] for trial in scored])
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
    best = [trial["value"] for trial in scored]
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
    """Places of values on an axis from 0 to 1, and its labels."""
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


def best_so_far(trials: Sequence[Trial], metric: str) -> bytes:
    """The metric of each trial in the order of their beginning, and the best up to it.

    Args:
        trials: one of them, at least, did not fail.
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
