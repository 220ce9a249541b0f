"""The images on which a study's arms disagree most."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from multas_ray.evaluate.evaluator import Prediction
from multas_ray.formats import scenes
from multas_ray.model.network import MultiTaskNet
from multas_ray.report.pictures import GAP, STRIP
from multas_ray.study import disagreements
from multas_ray.study.disagreements import disagreement
from multas_ray.study.layout import lay_out
from multas_ray.tasks.detection.postprocess import Detections


def prediction(box_class: int, pixel_class: int) -> Prediction:
    """One box on the left half, and pixels of one class."""
    found = Detections(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([0.9]), torch.tensor([box_class]))
    logits = torch.zeros(3, 8, 8)
    logits[pixel_class] = 1
    return {"det": found, "seg": logits}


def test_disagreement_is_the_share_of_pixels_that_two_arms_give_different_classes():
    assert disagreement([prediction(0, 1), prediction(0, 1)]) == 0
    assert disagreement([prediction(0, 1), prediction(1, 1)]) == pytest.approx(0.5)
    assert disagreement([prediction(0, 1), prediction(0, 2)]) == pytest.approx(1.0)
    # Two of three pairs differ, in all pixels.
    assert disagreement([prediction(0, 1), prediction(0, 1), prediction(0, 2)]) == pytest.approx(2 / 3)


def test_arms_are_drawn_side_by_side_on_the_images_they_differ_on(make_config):
    networks = {}
    for seed, tasks in enumerate((["det"], ["seg"], ["det", "seg"])):
        torch.manual_seed(seed)
        config = make_config(model={"tasks": tasks}).model
        network = MultiTaskNet(config, {"det": scenes.CLASSES, "seg": ["background", *scenes.CLASSES]})
        networks["_".join(tasks)] = network.eval().requires_grad_(False)
    trial = SimpleNamespace(config=make_config())
    picture = Image.open(io.BytesIO(disagreements._draw(trial, networks)))
    # Scenes of 64 pixels are enlarged four times: ground truth, the two single-task networks as one, the other.
    assert picture.width == 3 * 4 * 64 + 4 * GAP
    assert picture.height >= STRIP + disagreements.IMAGES * (4 * 64 + GAP)


def test_images_are_compared_where_most_arms_have_their_networks(make_study, monkeypatch):
    study = make_study({"a": {}, "b": {}, "c": {}}, seeds=[0, 1])
    there = {"a-0", "a-1", "c-1"}
    monkeypatch.setattr(disagreements, "has_network", lambda trial: trial.name in there)
    classes = {"a": {"det": ["cat"]}, "b": {}, "c": {"det": ["cat"], "seg": ["background", "cat"]}}
    load = {f"{arm}-{seed}": SimpleNamespace(classes=known) for arm, known in classes.items() for seed in (0, 1)}
    monkeypatch.setattr(disagreements, "load_network", lambda run: (load[Path(run).name], None))
    monkeypatch.setattr(disagreements, "_draw", lambda trial, networks: (trial.name, list(networks)))
    drawn = disagreements.disagreements(study, lay_out(study), ["a", "b", "c"])
    assert drawn == ("a-1", ["a", "c"])
    del classes["c"]["det"]
    assert disagreements.disagreements(study, lay_out(study), ["a", "b", "c"]) == drawn, "a network a task"
    classes["c"]["det"] = ["cat", "dog"]
    assert disagreements.disagreements(study, lay_out(study), ["a", "b", "c"]) is None
    there.clear()
    assert disagreements.disagreements(study, lay_out(study), ["a", "b", "c"]) is None
