"""Class masks in the loss of a step: what nobody looked for gets no supervised gradient, and is what is distilled."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from multas_ray.config import Config
from multas_ray.data.batch import Some, TrainBatch
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.segmentation.network import distil
from multas_ray.train.step import loss_terms
from tests.support.batches import SIZE, batch_of, config_of, made_for, with_unlabelled

CPU = torch.device("cpu")
PAPER = {"matching": "mutual_guidance", "classification": "generalized_focal"}
ANCHORS = 6 * sum((SIZE // stride) ** 2 for stride in (8, 16, 32, 64))
row_masks = st.dictionaries(st.integers(0, 3), st.sets(st.integers(0, 2)), max_size=4)


class Outputs(nn.Module):
    """Outputs of a network as parameters, so that their gradients can be read."""

    def __init__(self, rows: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.cls = nn.Parameter(torch.randn(rows, ANCHORS, 3))
        self.box = nn.Parameter(torch.randn(rows, ANCHORS, 4) * 0.2)
        self.seg = nn.Parameter(torch.randn(rows, 4, SIZE // 4, SIZE // 4))

    def forward(self, images, rows, features=False):
        det, seg = rows["det"], rows["seg"]
        return {"det": DetectionOutput(self.cls[det], self.box[det]), "seg": self.seg[seg]}


def backward(config: Config, batch: TrainBatch, outputs: Outputs, soft=None) -> dict[str, float]:
    """Run backward from all terms of a step, and return their sums."""
    terms = loss_terms(outputs, batch, soft or {}, config, CPU)
    for parameter in outputs.parameters():
        parameter.grad = None
    torch.stack([term.divided() for term in terms.values()]).sum().backward()
    return {name: float(term.sum.detach()) for name, term in terms.items()}


@given(row_masks, st.sampled_from([{}, PAPER]), st.integers(0, 20))
def test_columns_of_unlabelled_classes_get_no_gradient(det, loss, seed):
    config = config_of(teachers={}, loss={**loss, "weak_det": 1.0, "weak_seg": 1.0})
    plain = batch_of(["det", "both", "det", "both"], seed)
    outputs = Outputs(4, seed)
    backward(config, made_for(plain, config), outputs)
    whole, boxes = outputs.cls.grad.clone(), outputs.box.grad.clone()
    backward(config, made_for(with_unlabelled(plain, {"det": det}), config), outputs)
    for row in range(4):
        for label in range(3):
            column = outputs.cls.grad[row, :, label]
            if label in det.get(row, ()):
                assert (column == 0).all()
            else:
                # Not to the bit: an anchor's shares of its gradient are added up in another order.
                torch.testing.assert_close(column, whole[row, :, label], rtol=1e-5, atol=1e-8)
    assert torch.equal(outputs.box.grad, boxes)


@given(row_masks, st.integers(0, 20))
def test_a_masked_class_that_may_hide_in_the_background_is_not_pushed_down_there(seg, seed):
    config = config_of(teachers={})
    plain = batch_of(["seg", "both", "seg", "both"], seed)
    hidden = {row: {label + 1 for label in labels} for row, labels in seg.items()}
    for row, labels in hidden.items():
        # What nobody looked for is not in the mask.
        mask = plain.truth["seg"].values[row]
        mask[np.isin(mask, list(labels))] = 0
        mask[: SIZE // 2] = 0
    outputs = Outputs(4, seed)
    backward(config, made_for(with_unlabelled(plain, {"seg": hidden}), config), outputs)
    gradient = outputs.seg.grad
    assert torch.isfinite(gradient).all()
    for row, labels in hidden.items():
        inside = [0, *sorted(labels)]
        # Cells that touch only pixels of background: nothing lowers the logits of what may be there.
        mask = plain.truth["seg"].values[row]
        far = [
            (y, x)
            for y in range(1, SIZE // 4 - 1)
            for x in range(1, SIZE // 4 - 1)
            if (mask[4 * y - 4 : 4 * y + 8, 4 * x - 4 : 4 * x + 8] == 0).all()
        ]
        assert far
        for y, x in far:
            assert (gradient[row, inside, y, x] <= 1e-7).all()


def test_with_all_classes_labelled_every_number_is_what_it_was():
    for sections in ({}, {"loss": {**PAPER, "weak_det": 0.5, "weak_seg": 0.5}}):
        config = config_of(teachers={}, **sections)
        plain = batch_of(["det", "seg", "both", "none"])
        outputs = Outputs(4, 3)
        expected = backward(config, made_for(plain, config), outputs)
        gradients = [parameter.grad.clone() for parameter in outputs.parameters()]
        found = backward(config, made_for(with_unlabelled(plain, {"det": {0: []}, "seg": {1: []}}), config), outputs)
        assert found == expected
        assert all(torch.equal(a, p.grad) for a, p in zip(gradients, outputs.parameters(), strict=True))


def distilled(on: str, batch: TrainBatch) -> TrainBatch:
    return made_for(batch, config_of(distill={"det": {"on": on}, "seg": {"on": on}}))


def test_what_is_distilled_is_what_annotation_lacks_or_has():
    plain = batch_of(["det", "seg", "both", "none"])
    batch = with_unlabelled(plain, {"det": {0: [1], 2: [0, 2]}, "seg": {1: [3]}})
    expected = {
        "missing": {0: [0, 1, 0], 1: [1, 1, 1], 2: [1, 0, 1], 3: [1, 1, 1]},
        "annotated": {0: [1, 0, 1], 2: [0, 1, 0]},
        "all": {row: [1, 1, 1] for row in range(4)},
    }
    for on, rows in expected.items():
        det = distilled(on, batch).distil["det"]
        assert dict(zip(det.rows.tolist(), det.values.classes.astype(int).tolist(), strict=True)) == rows
        assert not det.values.merged.any()
    seg = distilled("missing", batch).distil["seg"]
    assert dict(zip(seg.rows.tolist(), seg.values.classes.astype(int).tolist(), strict=True)) == {
        0: [1, 1, 1, 1],
        1: [0, 0, 0, 1],
        3: [1, 1, 1, 1],
    }


@given(row_masks, st.integers(0, 20))
def test_distillation_of_what_is_missing_moves_no_labelled_column(det, seed):
    config = config_of(distill={"seg": {"weight": 0}}, loss={"det": 1e-9})
    batch = with_unlabelled(batch_of(["det", "both", "det", "none"], seed), {"det": det})
    batch = made_for(batch, config)
    nothing = {task: Some(some.rows[:0], some.at(some.rows[:0])) for task, some in batch.truth.items()}
    batch = replace(batch, truth=nothing, unlabelled={})
    outputs, teacher = Outputs(4, seed), Outputs(4, seed + 1)
    rows = batch.distil["det"].rows
    soft = {"det": DetectionOutput(teacher.cls.detach()[rows], teacher.box.detach()[rows])}
    backward(config, batch, outputs, soft)
    for row in range(4):
        for label in range(3):
            moved = bool(outputs.cls.grad[row, :, label].any())
            assert moved == (row == 3 or label in det.get(row, ()))


@given(st.sets(st.integers(1, 3)), st.integers(0, 20))
def test_what_is_had_and_what_is_missing_are_together_all(hidden, seed):
    """The chain rule of the divergence: of merged classes, plus what they share, is the whole one."""
    torch.manual_seed(seed)
    student, teacher = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16)
    batch = batch_of(["seg"], seed)
    batch.truth["seg"].values[:] = 0
    batch = with_unlabelled(batch, {"seg": {0: hidden}})
    values = {}
    for on in ("missing", "annotated", "all"):
        config = config_of(distill={"seg": {"on": on}, "det": {"weight": 0}})
        made = made_for(batch, config)
        truth = Some(made.truth["seg"].rows, torch.tensor(made.truth["seg"].values))
        some = made.distil["seg"]
        if not len(some.rows):
            values[on] = torch.zeros(16, 16)
            continue
        # One pixel after another, by a student that differs from its teacher there alone.
        by_pixel = []
        for place in range(16):
            other = teacher.clone()
            other[..., place, place] = student[..., place, place]
            by_pixel.append(distil(other, teacher, some, truth, config, (SIZE, SIZE))["kd_seg_kl"].sum)
        values[on] = torch.stack(by_pixel)
    inside = [0, *sorted(hidden)]
    share = teacher.softmax(1)[0, inside].sum(0).diagonal()
    if hidden:
        torch.testing.assert_close(values["annotated"] + share * values["missing"], values["all"], rtol=1e-4, atol=1e-5)


def test_of_a_teacher_that_knows_some_classes_these_alone_are_learned():
    batch = with_unlabelled(batch_of(["det", "seg", "both", "none"]), {"det": {0: [1], 2: [0, 2]}, "seg": {1: [2, 3]}})
    known = {"det": np.array([True, False, True]), "seg": np.array([True, True, True, False])}
    expected = {
        # Row 0 lacks a class only that the teacher does not know.
        "missing": ({1: [1, 0, 1], 2: [1, 0, 1], 3: [1, 0, 1]}, {0: (7, 9), 1: (4, 9), 3: (7, 9)}),
        "annotated": ({0: [1, 0, 1]}, {1: (3, 13), 2: (7, 9)}),
        "all": ({row: [1, 0, 1] for row in range(4)}, dict.fromkeys(range(4), (7, 9))),
    }
    for on, (det_rows, seg_rows) in expected.items():
        distil = made_for(batch, config_of(distill={"det": {"on": on}, "seg": {"on": on}}), known).distil
        det, seg = distil["det"], distil["seg"]
        assert dict(zip(det.rows.tolist(), det.values.classes.astype(int).tolist(), strict=True)) == det_rows
        bits = [(marks * (1 << np.arange(4))).sum(axis=1).tolist() for marks in seg.values]
        assert dict(zip(seg.rows.tolist(), zip(*bits, strict=True), strict=True)) == seg_rows


def test_what_a_teacher_does_not_know_is_background_on_both_sides():
    """MiB's rule: a student that shares the teacher's background out among unknown classes agrees with it."""
    teacher = torch.tensor([0.6, 0.4, 1e-30, 1e-30]).log()[None, :, None, None].expand(1, 4, 16, 16)
    known = {"seg": np.array([True, True, False, False])}
    config = config_of(distill={"seg": {"on": "missing"}, "det": {"weight": 0}})
    made = made_for(batch_of(["none"]), config, known)
    truth = Some(np.zeros(0, np.int64), torch.zeros(0, SIZE, SIZE, dtype=torch.uint8))
    for student, same in ((torch.tensor([0.1, 0.4, 0.2, 0.3]), True), (torch.tensor([0.6, 0.1, 0.2, 0.1]), False)):
        logits = student.log()[None, :, None, None].expand(1, 4, 16, 16).contiguous().requires_grad_()
        term = distil(logits, teacher, made.distil["seg"], truth, config, (SIZE, SIZE))["kd_seg_kl"]
        assert (term.divided().item() < 1e-6) == same
        term.sum.backward()
        assert torch.isfinite(logits.grad).all()
