"""ONNX graphs as teachers: tiny ones of each layout."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from multas_ray.config import TeacherConfig
from multas_ray.deploy.export import Graph as Exported
from multas_ray.deploy.export import to_onnx
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet
from multas_ray.teacher import loader_of
from multas_ray.teacher.onnx import open_model
from multas_ray.teacher.teacher import StudentTerms
from tests.support.batches import CLASSES, config_of
from tests.support.teachers import images


def graph(path, outputs, kind=TensorProto.FLOAT, batch="batch", metadata=None, shape=(3, 64, 64)):
    """A graph whose outputs are constants, the first with the images' mean added, for one image after another."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=1),
    ]
    values, tensors = [], []
    for name, value in outputs.items():
        tensors.append(numpy_helper.from_array(np.array(value, np.float32)[None], f"{name}_value"))
        axes = np.array([1] * np.ndim(value), np.int64)
        tensors.append(numpy_helper.from_array(np.array([-1, *axes], np.int64), f"{name}_shape"))
        nodes.append(helper.make_node("Reshape", ["mean", f"{name}_shape"], [f"{name}_mean"]))
        nodes.append(helper.make_node("Add", [f"{name}_value", f"{name}_mean"], [name]))
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *np.shape(value)]))
    given = helper.make_tensor_value_info("images", kind, [batch, *shape])
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", [given], values, tensors), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 9
    helper.set_model_props(model, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    onnx.save(model, path)
    return TeacherConfig(source=f"onnx:{path}")


def opened(settings, task, **changes):
    return open_model(settings.model_copy(update=changes), task, "cpu")


def zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, 3, 64, 64, dtype=torch.uint8)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
@pytest.mark.parametrize("batch", ["batch", 2])
def test_a_graph_of_boxes(tmp_path, kind, batch):
    """Whole pixels or fractions of them, any number of images at a time or two."""
    outputs = {"boxes": [[0.1, 0.2, 0.5, 0.6]] * 4, "logits": [[2.0, -2.0]] * 4}
    settings = graph(tmp_path / "m.onnx", outputs, kind, batch, {"det_classes": ["cat", "dog"]})
    model = opened(settings, "det")
    assert model.names == ["cat", "dog"]
    found = model(zeros(5))
    assert found.boxes.shape == (5, 4, 4)
    torch.testing.assert_close(found.probabilities[4, 0], torch.tensor([2.0, -2.0]).sigmoid())
    white = model(zeros(3) + 255)
    shift = 255 if kind == TensorProto.UINT8 else 1
    torch.testing.assert_close(white.boxes[0, 0], torch.tensor([0.1, 0.2, 0.5, 0.6]) + shift)


def test_a_graph_of_pixels_is_run_at_its_own_size(tmp_path):
    settings = graph(tmp_path / "m.onnx", {"logits": np.zeros((2, 5, 7))}, shape=(3, 32, 32))
    p = opened(settings, "seg", names=["background", "cat"])(zeros(2))
    torch.testing.assert_close(p, torch.full((2, 2, 5, 7), 0.5))


@pytest.mark.parametrize(
    ("outputs", "task", "words"),
    [
        ({"boxes": [[0.0] * 4]}, "det", "for det its outputs need 'boxes' and 'scores' or 'logits'; it has boxes"),
        ({"scores": [[0.0]]}, "det", "need 'boxes' and 'scores' or 'logits'; it has scores"),
        ({"output0": [[0.0]]}, "seg", "for seg its outputs need 'scores' or 'logits'; it has output0"),
        ({"logits": [[[0.0]]]}, "seg", "does not tell its classes .seg_classes, a JSON list in its metadata"),
    ],
)
def test_another_layout_is_refused(tmp_path, outputs, task, words):
    with pytest.raises(UserError, match=words):
        opened(graph(tmp_path / "m.onnx", outputs), task)


def test_what_is_no_graph_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no graph that ONNX Runtime can run"):
        opened(TeacherConfig(source=f"onnx:{tmp_path / 'm.onnx'}"), "det")
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        opened(TeacherConfig(source=f"onnx:{tmp_path / 'other.onnx'}"), "det")


@pytest.mark.heavy
def test_an_export_of_this_project_answers_as_its_network(tmp_path):
    torch.manual_seed(0)
    network = MultiTaskNet(config_of().model, CLASSES).eval()
    (tmp_path / "model.onnx").write_bytes(to_onnx(Exported(network, 64).eval(), 64))
    batch = torch.tensor(images(3))
    with torch.inference_mode():
        scores, boxes, logits = Exported(network, 64).eval()(batch)
    settings = TeacherConfig(source=f"onnx:{tmp_path / 'model.onnx'}")
    found = opened(settings, "det")(batch)
    torch.testing.assert_close(found.boxes, boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.probabilities, scores, rtol=0, atol=1e-3)
    torch.testing.assert_close(opened(settings, "seg")(batch), logits.softmax(dim=1), rtol=0, atol=1e-3)
    assert opened(settings, "seg").names == CLASSES["seg"]


@pytest.mark.parametrize("shape", [(3, 32, 48), (32, 32, 3), (1, 32, 32)])
def test_an_input_that_is_no_square_of_three_channels_is_refused(tmp_path, shape):
    names = {"seg_classes": ["a", "b"]}
    settings = graph(tmp_path / "m.onnx", {"scores": np.ones((2, 4, 4))}, metadata=names, shape=shape)
    with pytest.raises(UserError, match="is no square of 3 channels"):
        opened(settings, "seg")


def test_names_must_be_as_many_as_outputs(tmp_path):
    settings = graph(tmp_path / "m.onnx", {"scores": np.ones((3, 4, 4))}, shape=(3, 32, 32))
    for names in (["cat", "dog"], ["background", "cat", "dog", "cow"]):
        changed = settings.model_copy(update={"names": names})
        with pytest.raises(UserError, match=rf"it answers with 3 classes, and has {len(names)} names"):
            loader_of(settings.source).describe(changed, "seg", StudentTerms(("background", "cat"), 24, 4))


@pytest.mark.parametrize("suffix", [".data", "_data"])
def test_weights_beside_a_graph_are_in_its_digest(tmp_path, suffix):
    digests = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = graph(folder / "m.onnx", {"scores": np.ones((2, 4, 4)) * 5}, metadata={"seg_classes": ["a", "b"]})
        (folder / f"m.onnx{suffix}").write_bytes(bytes([number]))
        digests.append(opened(settings, "seg").digest)
    assert digests[0] != digests[1]
