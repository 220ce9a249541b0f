"""Means and differences over seeds, with 95 % confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import stdtrit

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % confidence interval, which are NaN for a single value."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean of n >= 1 values, with Student's interval of n - 1 degrees of freedom."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def paired_difference(arm: Mapping[int, float], against: Mapping[int, float]) -> Estimate | None:
    """Estimate `arm - against`, given by seed, over the seeds that both have; None if they share none."""
    seeds = sorted(arm.keys() & against.keys())
    return estimate([arm[seed] - against[seed] for seed in seeds]) if seeds else None


def multi_task_gain(multi: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Multi-task gain in percent, Delta_m of Vandenhende et al. (2021).

    It is the mean over tasks of the relative gain over the single-task network.

    Args:
        multi: metric of each task, of which more is better, for the multi-task network.
        single: the same of the single-task networks; not 0.
    """
    return 100 * fmean((multi[task] - single[task]) / single[task] for task in single)
