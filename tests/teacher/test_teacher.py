"""The frozen teacher, whole and packed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multas_ray.checkpoint.weights import load_network, write_checkpoint
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.teacher.teacher import TeacherSpec, digests, split, teacher_specs, to_tensors


@pytest.fixture
def specs(make_config, random_teachers) -> dict[str, TeacherSpec]:
    config = make_config(teachers=random_teachers)
    return teacher_specs(config, read_info(config.data.path))


def images(rows: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 3, 64, 64), dtype=np.uint8)


def test_soft_targets_are_the_network_s_outputs(specs):
    teacher = specs["det"].load("cpu")
    soft = teacher(images())
    with torch.no_grad():
        out = teacher.network(torch.tensor(images()))
    assert soft.keys() == {"cls", "box", "det.digest"}
    np.testing.assert_allclose(soft["cls"], out["cls"].numpy(), rtol=2e-3, atol=1e-3)
    assert soft["box"].dtype == np.float16
    np.testing.assert_array_equal(soft["det.digest"], digests(images()))
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_a_packed_answer_is_the_answer_in_a_few_bytes(specs):
    whole = to_tensors(specs["seg"].load("cpu")(images()), torch.device("cpu"))["seg"]
    soft = replace(specs["seg"], packed=True).load("cpu")(images())
    assert soft.keys() == {"seg.packed", "seg.ends", "seg.digest"}
    assert [len(row) for row in split("seg", soft)] == np.diff(soft["seg.ends"], prepend=0).tolist()
    assert soft["seg.packed"].nbytes < whole.numel() / 2
    unpacked = to_tensors(soft, torch.device("cpu"))["seg"]
    torch.testing.assert_close(unpacked.softmax(dim=1), whole.softmax(dim=1), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("cat", "dog")}, "its classes are circle, .*; the data set's are cat, dog"),
        ({"task": "seg"}, "trained for det, not seg"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(specs, changes, words):
    with pytest.raises(UserError, match=words):
        replace(specs["det"], **changes).load("cpu")


def spoil(checkpoint: str, folder: Path) -> str:
    """A copy of a checkpoint whose answers are beyond float16."""
    network, meta = load_network(checkpoint)
    weights = network.state_dict()
    for name, value in weights.items():
        if "_head." in name and name.endswith("bias"):
            value[:] = 1e38
    write_checkpoint(folder, weights, {}, meta)
    return str(folder)


@pytest.mark.parametrize("task", ["det", "seg"])
def test_a_teacher_that_answers_with_nan_is_named(specs, task, tmp_path):
    spec = replace(specs[task], checkpoint=spoil(specs[task].checkpoint, tmp_path))
    with pytest.raises(UserError, match=rf"teachers\.{task}\.checkpoint {tmp_path}: it answers with NaN"):
        spec.load("cpu")(images())


def test_every_image_has_its_digest():
    some = images(3)
    assert len(set(digests(some).tolist())) == 3
    np.testing.assert_array_equal(digests(some[[2, 0]]), digests(some)[[2, 0]])
    changed = some.copy()
    changed[1, 0, 0, 0] ^= 1
    assert (digests(changed) != digests(some)).tolist() == [False, True, False]
