"""The frozen teacher, whole and packed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from multas_ray.config import TeacherConfig
from multas_ray.errors import UserError
from multas_ray.teacher import own
from multas_ray.teacher.teacher import TeacherSpec, digests, to_tensors
from tests.support.teachers import images, spoiled, with_terms


def test_soft_targets_are_the_network_s_outputs(specs):
    teacher = specs["det"].load("cpu")
    soft = teacher(images())
    with torch.no_grad():
        out = teacher.network(torch.tensor(images()))
    assert soft.packed is None
    assert soft.dense.feature is None
    np.testing.assert_allclose(soft.dense.cls, out["det"].cls.numpy(), rtol=2e-3, atol=1e-3)
    assert soft.dense.box.dtype == np.float16
    np.testing.assert_array_equal(soft.digests, digests(images()))
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_a_packed_answer_is_the_answer_in_a_few_bytes(specs):
    whole = to_tensors({"seg": specs["seg"].load("cpu")(images())}, torch.device("cpu"))["seg"]
    soft = with_terms(specs["seg"], packed=True).load("cpu")(images())
    assert soft.dense is None
    assert len(soft.packed) == 4
    assert sum(map(len, soft.packed)) < whole.numel() / 2
    unpacked = to_tensors({"seg": soft}, torch.device("cpu"))["seg"]
    torch.testing.assert_close(unpacked.softmax(dim=1), whole.softmax(dim=1), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            lambda spec: with_terms(spec, classes=("background", "cat", "dog")),
            "its classes are circle, .*; none of them is among those of the run, background, cat, dog",
        ),
        (lambda spec: replace(spec, task="seg"), "trained for det, not seg"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(specs, changes, words):
    with pytest.raises(UserError, match=words):
        changes(specs["det"]).load("cpu")


def test_a_teacher_answers_in_the_columns_of_its_student(specs):
    """Of a run that has other classes, in another order; what it has no class for is background."""
    det, seg = (specs[task].load("cpu") for task in ("det", "seg"))
    names = det.network.classes["det"]
    run = ("dog", names[2], names[0])
    found = with_terms(specs["det"], classes=run).load("cpu")(images()).dense
    whole = det(images()).dense
    np.testing.assert_array_equal(found.cls[..., 1:], whole.cls[..., [2, 0]])
    assert (found.cls[..., 0] < -1e3).all()
    np.testing.assert_array_equal(found.box, whole.box)
    spec = with_terms(specs["seg"], classes=("background", *run))
    p, expected = (torch.tensor(of(images()).dense).float().softmax(dim=1) for of in (spec.load("cpu"), seg))
    assert not p[:, 1].any()
    torch.testing.assert_close(p[:, [2, 3]], expected[:, [3, 1]], rtol=0, atol=2e-3)
    torch.testing.assert_close(p[:, 0], 1 - expected[:, [3, 1]].sum(1), rtol=0, atol=2e-3)
    packed = with_terms(spec, packed=True).load("cpu")(images())
    unpacked = to_tensors({"seg": packed}, torch.device("cpu"))["seg"].softmax(dim=1)
    torch.testing.assert_close(unpacked, p, rtol=0, atol=0.03)


def test_a_teacher_is_described_with_the_classes_that_it_knows(specs):
    spec = specs["det"]
    names = spec.terms.classes
    terms = replace(spec.terms, classes=("dog", *names[:2]))
    description = own.describe(TeacherConfig(source=spec.description.source), "det", terms)
    assert description.classes == names[:2]
    assert TeacherSpec("det", description, terms).known.tolist() == [False, True, True]
    assert spec.known.all()


@pytest.mark.parametrize("task", ["det", "seg"])
def test_a_teacher_that_answers_with_nan_is_named(specs, task, tmp_path):
    spec = spoiled(specs[task], tmp_path)
    with pytest.raises(UserError, match=rf"teachers\.{task}\.source {tmp_path}: it answers with NaN"):
        spec.load("cpu")(images())


def test_every_image_has_its_digest():
    some = images(3)
    assert len(set(digests(some).tolist())) == 3
    np.testing.assert_array_equal(digests(some[[2, 0]]), digests(some)[[2, 0]])
    changed = some.copy()
    changed[1, 0, 0, 0] ^= 1
    assert (digests(changed) != digests(some)).tolist() == [False, True, False]
