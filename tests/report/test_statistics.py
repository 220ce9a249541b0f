"""Intervals against textbook values."""

import math

import pytest

from multas_ray.report.statistics import estimate, multi_task_gain, paired_difference


def test_an_interval_is_students():
    # t(0.975; 2) = 4.302653, standard deviation 1: 4.302653 / sqrt(3).
    assert estimate([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_one_value_has_no_interval():
    mean, low, high = estimate([4.0])
    assert mean == 4.0
    assert math.isnan(low)
    assert math.isnan(high)


def test_differences_are_taken_seed_by_seed():
    # Far apart between seeds, alike within one: paired, the difference is certain.
    difference = paired_difference({0: 10.0, 1: 21.0, 2: 32.0, 7: 0.0}, {2: 30.0, 1: 20.0, 0: 10.0})
    assert difference == pytest.approx((1.0, 1 - 2.484138, 1 + 2.484138), abs=1e-5)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_the_gain_is_the_mean_of_relative_gains():
    assert multi_task_gain({"det": 22.0, "seg": 45.0}, {"det": 20.0, "seg": 50.0}) == pytest.approx(0.0)
    assert multi_task_gain({"det": 30.0, "seg": 50.0}, {"det": 20.0, "seg": 50.0}) == pytest.approx(25.0)
