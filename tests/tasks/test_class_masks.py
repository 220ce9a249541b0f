"""The examples of docs/method.md, computed by hand there, and what class masks mean for the metrics."""

import math

import numpy as np
import pytest
import torch

from multas_ray.config import DetectionDistillConfig, LossConfig
from multas_ray.data.batch import Compared, Some
from multas_ray.tasks.detection.anchors import corners
from multas_ray.tasks.detection.distillation import detection_distillation
from multas_ray.tasks.detection.loss import detection_losses
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.tasks.segmentation.loss import segmentation_loss
from multas_ray.tasks.segmentation.metric import SegmentationMetric
from multas_ray.tasks.segmentation.network import distil
from multas_ray.teacher.selection import classes_to_distil
from tests.support.batches import config_of

DOG_OF_DET, DOG_OF_SEG = torch.tensor([[False, True]]), torch.tensor([[False, False, True]])
ANCHORS = torch.tensor([[0.25, 0.25, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2]])
STUDENT, TEACHER = (0.5, 0.3, 0.2), (0.2, 0.2, 0.6)


def logits_of(distribution: tuple[float, ...], side: int) -> torch.Tensor:
    """Logits (1, C, side, side) of a class distribution at every pixel."""
    return torch.tensor(distribution).log()[None, :, None, None].expand(-1, -1, side, side).contiguous()


@pytest.mark.parametrize(("unlabelled", "expected"), [(None, 0.8664), (DOG_OF_DET, 0.3466)])
def test_an_unlabelled_column_costs_nothing(unlabelled, expected):
    output = DetectionOutput(torch.zeros(1, 2, 2), torch.zeros(1, 2, 4))
    truth = UnitBoxes(
        corners(ANCHORS[:1])[None], torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool)
    )
    terms = detection_losses(output, truth, ANCHORS, LossConfig(), unlabelled)
    assert float(terms["det_cls"].divided()) == pytest.approx(expected, abs=1e-4)
    assert (terms["det_cls"].count, terms["det_box"].count) == (1, 4)


def test_a_box_of_an_unlabelled_class_is_still_a_box():
    output = DetectionOutput(torch.zeros(1, 2, 2, requires_grad=True), torch.ones(1, 2, 4, requires_grad=True))
    dog = UnitBoxes(corners(ANCHORS[:1])[None], torch.ones(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool))
    for loss in (LossConfig(), LossConfig(matching="mutual_guidance", classification="generalized_focal")):
        terms = detection_losses(output, dog, ANCHORS, loss, DOG_OF_DET)
        torch.autograd.backward([term.sum for term in terms.values()], inputs=[output.cls, output.box])
        assert not output.cls.grad[..., 1].any()
        assert output.cls.grad[..., 0].all()
        assert output.box.grad[0, 0].any()
        plain = detection_losses(output, dog, ANCHORS, loss)
        assert all(torch.equal(terms[name].count, plain[name].count) for name in terms)
        output.cls.grad = output.box.grad = None


@pytest.mark.parametrize(("unlabelled", "expected"), [(None, 0.8634), (DOG_OF_SEG, 0.6391)])
def test_background_may_be_any_unlabelled_class(unlabelled, expected):
    mask = torch.tensor([[[0, 1], [255, 0]]], dtype=torch.uint8)
    term = segmentation_loss(logits_of(STUDENT, 2), mask, unlabelled)["seg"]
    assert term.count == 3
    assert term.divided().item() == pytest.approx(expected, abs=1e-4)


def test_what_is_said_of_an_unlabelled_class_says_background_or_one_of_them():
    mask = torch.full((1, 2, 2), 2, dtype=torch.uint8)
    term = segmentation_loss(logits_of(STUDENT, 2), mask, DOG_OF_SEG)["seg"]
    assert term.divided().item() == pytest.approx(-math.log(0.7), abs=1e-4)


def test_a_teacher_fills_the_unlabelled_column():
    probabilities = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
    student = DetectionOutput(torch.zeros(1, 2, 2), torch.zeros(1, 2, 4))
    teacher = DetectionOutput(probabilities.logit(), torch.ones(1, 2, 4))
    terms = detection_distillation(student, teacher, None, DetectionDistillConfig(), DOG_OF_DET)
    cls, box = terms["kd_det_guided_cls"], terms["kd_det_guided_box"]
    assert float(cls.divided()) == pytest.approx(0.1733, abs=1e-4)
    assert float(cls.count) == pytest.approx(0.9)
    assert float(box.count) == pytest.approx(4 * 0.9)
    # Every code differs by 1: 1.5 * (1 - 0.11 / 2) each.
    assert float(box.sum) == pytest.approx(4 * 0.9 * 1.5 * (1 - 0.055), abs=1e-4)


def test_boxes_of_the_published_losses_are_those_of_anchors_of_a_compared_class():
    probabilities = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
    student = DetectionOutput(torch.zeros(1, 2, 2), torch.zeros(1, 2, 4), torch.zeros(1, 1, 3))
    teacher = DetectionOutput(probabilities.logit(), torch.tensor([[[5.0] * 4, [1.0] * 4]]), torch.zeros(1, 1, 3))
    config = DetectionDistillConfig(guided=0, soft_cls=1, soft_box=1)
    terms = detection_distillation(student, teacher, None, config, DOG_OF_DET)
    only_second = DetectionOutput(teacher.cls[:, 1:], teacher.box[:, 1:])
    whole = detection_distillation(DetectionOutput(student.cls[:, 1:], student.box[:, 1:]), only_second, None, config)
    assert terms["kd_det_soft_box"].count == 4
    torch.testing.assert_close(terms["kd_det_soft_box"].sum, whole["kd_det_soft_box"].sum)
    assert terms["kd_det_soft_cls"].count == 2


def test_a_teacher_shares_the_background_out_where_there_is_background():
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[:, :4, 4:] = 1
    mask[:, 4:, :4] = 255
    mask[:, 4:, 6:] = 1
    dog = DOG_OF_SEG.numpy()
    truth, chosen = (
        Some(np.array([0]), mask),
        Some(np.array([0]), classes_to_distil("missing", dog, np.ones(3, bool), hides=True)),
    )
    student = logits_of(STUDENT, 2).requires_grad_()
    [term] = distil(student, logits_of(TEACHER, 2), chosen, truth, config_of(), (8, 8)).values()
    assert term.count == 1.5
    assert term.divided().item() == pytest.approx(0.4613, abs=1e-4)
    term.sum.backward()
    assert not student.grad[0, 1].any(), "cat is labelled"
    assert student.grad[0, [0, 2], 0, 0].all()
    assert not student.grad[0, :, 0, 1].any(), "a pixel of cat"


def test_maps_of_the_learned_classes_alone_are_compared():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2)
    truth, dog = Some(np.array([0]), torch.zeros(1, 8, 8, dtype=torch.uint8)), DOG_OF_SEG.numpy()
    for on, compared in (("missing", Compared(dog, dog & False)), ("annotated", Compared(~dog, dog))):
        config = config_of(distill={"seg": {"on": on, "kl": 0, "cwd": 1}})
        [term] = distil(student, teacher, Some(truth.rows, compared), truth, config, (8, 8)).values()
        student.grad = None
        term.sum.backward()
        assert term.count == compared.classes.sum()
        assert [bool(student.grad[0, label].any()) for label in range(3)] == compared.classes[0].tolist()


def test_a_pixel_of_background_counts_against_the_classes_that_it_is_certainly_not():
    metric = SegmentationMetric(["background", "cat", "dog"])
    true, found = np.array([[0, 1], [0, 0]], np.uint8), np.array([[2, 1], [1, 0]], np.uint8)
    metric.add_labels(found, true, DOG_OF_SEG.numpy()[0])
    assert metric.compute()["seg/IoU/cat"] == 50
    assert metric.compute().keys() & {"seg/IoU/background", "seg/IoU/dog"} == set()
    assert metric.images() == {"background": 1, "cat": 1, "dog": 0}
    # With dog looked for, the same pixels are background.
    metric.add_labels(found, true)
    assert metric.compute()["seg/IoU/background"] == pytest.approx(100 / 3)
    other = SegmentationMetric(["background", "cat", "dog"])
    other.merge(metric.state())
    assert other.compute() == metric.compute()
    assert other.images() == metric.images() == {"background": 2, "cat": 2, "dog": 1}


def test_without_a_background_every_pixel_is_decided():
    metric = SegmentationMetric(["road", "sky"])
    true, found = np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8)
    metric.add_labels(found, true, np.array([False, True]))
    assert metric.compute()["seg/IoU/road"] == 50


def test_a_teacher_without_a_background_leaves_the_student_s_alone():
    """As one trained on a data set of roads and skies alone: of what is neither it can say nothing."""
    dog_and_cat = np.array([[False, True, True]])
    known = np.array([False, True, True])
    chosen = Some(np.array([0]), classes_to_distil("missing", dog_and_cat, known, hides=True))
    truth = Some(np.array([0]), torch.zeros(1, 8, 8, dtype=torch.uint8))
    student = torch.tensor([3.0, -1, -2])[None, :, None, None].expand(1, 3, 2, 2).clone().requires_grad_()
    # What the teacher does not know has next to no probability in its answer.
    teacher = torch.tensor([-1e4, 1.0, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    [term] = distil(student, teacher, chosen, truth, config_of(), (8, 8)).values()
    # Between dog and cat the two agree.
    assert term.divided().item() == pytest.approx(0, abs=1e-6)
    term.sum.backward()
    assert student.grad.abs().max() < 1e-6


def test_rows_are_distilled_alike_wherever_they_are():
    """One whose classes are all unlabelled alone on a worker, and beside another."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[:, :4] = 1
    truth = Some(np.array([0, 1]), masks)
    marks = np.array([[True, True, True], [False, False, True]])
    whole = classes_to_distil("missing", marks, np.ones(3, bool), hides=True)

    def terms(rows):
        chosen = Some(np.array(rows), Compared(whole.classes[rows], whole.merged[rows]))
        [term] = distil(student[rows], teacher[rows], chosen, truth, config_of(), (8, 8)).values()
        return torch.stack([term.sum, term.count])

    torch.testing.assert_close(terms([0]) + terms([1]), terms([0, 1]))


def test_an_annotated_pixel_of_an_unlabelled_class_counts_for_nothing():
    """As LVIS has them, of classes that were annotated in part."""
    metric = SegmentationMetric(["background", "cat", "dog"])
    true, found = np.array([[2, 2], [0, 1]], np.uint8), np.array([[2, 1], [0, 1]], np.uint8)
    metric.add_labels(found, true, DOG_OF_SEG.numpy()[0])
    scores = metric.compute()
    assert "seg/IoU/dog" not in scores
    assert metric.images()["dog"] == 0
    # One pixel of cat found, and one where certainly none is.
    assert scores["seg/IoU/cat"] == 50
