"""The exported network: the same answers without anything of training, also as ONNX."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import multas_ray
from multas_ray.checkpoint.folder import Meta, weights_digest
from multas_ray.checkpoint.weights import write_checkpoint
from multas_ray.config import EvaluateConfig, ModelConfig
from multas_ray.deploy import export as exporting
from multas_ray.deploy.export import export
from multas_ray.errors import RunError, UserError
from multas_ray.formats import scenes
from multas_ray.model.network import MultiTaskNet
from multas_ray.storage import StoragePath
from tests.support.shared import ROOT


def test_an_export_answers_as_its_checkpoint_and_holds_nothing_of_training(checkpoint, photos, tmp_path):
    told = export(checkpoint, tmp_path / "out", onnx=False)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "meta.json",
        "model.safetensors",
    ]
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["model"]["adapter"] is None
    before, after = (multas_ray.load(str(path), "cpu") for path in (checkpoint, tmp_path / "out"))
    assert before.network.adapters is not None
    assert after.network.adapters is None
    assert told["parameters"] == sum(weight.numel() for weight in after.network.state_dict().values())
    images = sorted(photos.glob("*.png"))
    for one, other in zip(before.predict(images), after.predict(images), strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.mask, other.mask)
    assert weights_digest(StoragePath(tmp_path / "out"))


def test_a_broken_export_is_refused(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out", onnx=False)
    file = tmp_path / "out" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="not what was written"):
        multas_ray.load(str(tmp_path / "out"))


@pytest.mark.heavy
def test_onnx_gives_what_pytorch_gives_for_any_batch(checkpoint, tmp_path, monkeypatch):
    told = export(checkpoint, tmp_path / "out")
    assert told["difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["scores", "boxes", "logits"]
    assert {value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())} == {"batch"}
    facts = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    classes = list(scenes.CLASSES)
    assert facts == {"size": 64, "det_classes": classes, "seg_classes": ["background", *classes], "stride": 4}
    for count in (1, 5):
        scores, boxes, logits = session.run(None, {"images": np.zeros((count, 3, 64, 64), np.uint8)})
        assert len(scores) == len(boxes) == len(logits) == count
    # One that differs is not written.
    monkeypatch.setattr(exporting, "difference", lambda *arguments: float("nan"))
    with pytest.raises(RunError, match="differ from PyTorch's"):
        export(checkpoint, tmp_path / "worse")
    assert not (tmp_path / "worse").exists()


@pytest.mark.heavy
def test_the_guides_script_finds_what_the_network_does(checkpoint, photos, tmp_path, monkeypatch, capsys):
    export(checkpoint, tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text(), re.DOTALL)[1]
    photo = str(photos / "photo1.png")
    monkeypatch.setattr(sys, "argv", ["detect.py", str(tmp_path / "out" / "model.onnx"), photo, "0.001"])
    names: dict = {}
    exec(code, names)
    predictor = multas_ray.load(checkpoint, "cpu")
    expected = predictor.predict(photo)
    found = names["objects"][: len(expected.scores)]
    # Pillow rounds a pixel where torchvision may not.
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores, rtol=0.02)
    np.testing.assert_allclose([box for _, _, box in found], expected.boxes, atol=0.5)
    assert [name for name, _, _ in found] == [predictor.det_classes[label] for label in expected.labels]
    assert (names["mask"] == expected.mask).mean() > 0.99
    assert f"{found[0][0]} {found[0][1]:.2f} at" in capsys.readouterr().out


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("settings", "outputs"),
    [
        ({"tasks": ["det"], "backbone": "resnet18", "width": 16}, {"scores", "boxes"}),
        ({"tasks": ["seg"], "backbone": "efficientnet_lite0", "width": 16}, {"logits"}),
        ({"tasks": ["det", "seg"], "backbone": "resnet18", "preset": "paper"}, {"scores", "boxes", "logits"}),
    ],
    ids=["detection", "segmentation", "paper"],
)
def test_onnx_of_other_networks_is_pytorch_s_too(settings, outputs, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(pretrained=False, **settings)
    network = MultiTaskNet(config, {"det": ["cat", "dog"], "seg": ["background", "cat", "dog"]})
    classes = {"det_classes": list(network.det_classes), "seg_classes": list(network.seg_classes)}
    meta = Meta(step=1, model=network.config, size=64, evaluate=EvaluateConfig(), metrics={}, **classes)
    write_checkpoint(tmp_path / "checkpoint", network.state_dict(), {}, meta)
    assert export(tmp_path / "checkpoint", tmp_path / "out")["difference"] < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert {output.name for output in session.get_outputs()} == outputs


def test_a_folder_of_something_else_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        export(checkpoint, tmp_path, onnx=False)
    assert (tmp_path / "thesis.txt").exists()
    export(checkpoint, tmp_path / "exported", onnx=False)
    export(checkpoint, tmp_path / "exported", onnx=False)
    (tmp_path / "exported" / "labels.txt").write_text("my own")
    with pytest.raises(UserError, match="holds something else"):
        export(checkpoint, tmp_path / "exported", onnx=False)


def test_a_checkpoint_in_training_is_not_exported_over(tmp_path, random_teachers):
    place = Path(random_teachers["det"]["checkpoint"])
    before = sorted(path.name for path in place.iterdir())
    assert "state.pt" in before
    with pytest.raises(UserError, match="holds something else"):
        export(place, place, onnx=False)
    assert sorted(path.name for path in place.iterdir()) == before
