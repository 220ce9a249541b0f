"""Calibration errors and fitted temperatures, on statements whose truth is drawn from known probabilities."""

import numpy as np
import pytest
import torch

from multas_ray.evaluate.calibration import Calibration

NAMES = ["cat", "dog", "cow"]


def drawn_detections(temperature: float, count: int = 20_000):
    """Detections that are right as often as their logits divided by a temperature say."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, count)
    right = random.random(count) < 1 / (1 + np.exp(-logits / temperature))
    return 1 / (1 + np.exp(-logits)), random.integers(0, 2, count), right


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_the_temperature_of_detections_is_found(temperature):
    calibration = Calibration(NAMES)
    for part in zip(*(np.array_split(each, 3) for each in drawn_detections(temperature)), strict=True):
        calibration.add_detections(*part)
    assert calibration.temperature() == pytest.approx(temperature, rel=0.06)
    assert (calibration.error() < 0.02) == (temperature == 1)
    errors = calibration.errors()
    assert errors.keys() == {"cat", "dog"}
    assert all((error < 0.025) == (temperature == 1) for error in errors.values())


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_the_temperature_of_pixels_is_found(temperature):
    torch.manual_seed(0)
    logits = 3 * torch.randn(20_000, 3)
    logits[:, 2] = -torch.inf
    truth = torch.distributions.Categorical(logits=logits / temperature).sample()
    calibration = Calibration(NAMES)
    calibration.add_pixels(logits, truth)
    assert calibration.temperature() == pytest.approx(temperature, rel=0.06)
    assert (calibration.error() < 0.02) == (temperature == 1)
    assert calibration.errors().keys() == {"cat", "dog"}


def test_an_error_by_hand():
    """Ten detections of 0.8, of which six are right, and ten of 0.1, of which none is: (10 * 0.2 + 10 * 0.1) / 20."""
    calibration = Calibration(NAMES)
    scores, right = np.repeat([0.8, 0.1], 10), np.repeat([True, False, False], [6, 4, 10])
    calibration.add_detections(scores, np.zeros(20, int), right)
    assert calibration.error() == pytest.approx(0.15)
    assert calibration.errors() == {"cat": pytest.approx(0.15)}


def test_without_statements_there_is_nothing():
    calibration = Calibration(NAMES)
    calibration.add_detections(np.zeros(0), np.zeros(0, int), np.zeros(0, bool))
    assert calibration.temperature() is None
    assert calibration.error() is None
    assert not calibration.errors()
    # Never wrong: as sure as can be.
    calibration.add_detections(np.full(9, 0.7), np.zeros(9, int), np.ones(9, bool))
    assert calibration.temperature() == 0.25
