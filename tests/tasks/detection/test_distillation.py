import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from multas_ray.config import DetectionDistillConfig, SegmentationDistillConfig
from multas_ray.tasks.detection.anchors import anchors
from multas_ray.tasks.detection.distillation import defeat, detection_distillation, foreground_cells
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.segmentation.distillation import channel_divergence, class_divergence, segmentation_distillation
from multas_ray.tasks.terms import Term

ANCHORS = anchors(32, 32)
CELLS = len(ANCHORS) // 6
EVERYTHING = DetectionDistillConfig(on="all", soft_cls=1, soft_box=1, mse=1, pdf=1, defeat=1)
Outputs = dict[str, Tensor]


def outputs(batch: int, seed: int) -> Outputs:
    """Of both networks' heads, and features of 3 channels."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "cls": (batch, len(ANCHORS), 4),
        "box": (batch, len(ANCHORS), 4),
        "feature": (batch, CELLS, 3),
        "seg": (batch, 5, 8, 8),
    }
    return {name: torch.randn(shape, generator=g).requires_grad_() for name, shape in shapes.items()}


def foreground(batch: int) -> Tensor:
    """Objects' cells of every row; of each third row nothing is known."""
    cells = (torch.arange(batch * CELLS).reshape(batch, CELLS) % 5 == 0).long()
    cells[2::3] = -1
    return cells


def terms(student: Outputs, teacher: Outputs, known: Tensor | None = None) -> dict[str, Term]:
    known = foreground(len(student["cls"])) if known is None else known
    return detection_distillation(boxes(student), boxes(teacher), known, EVERYTHING) | segmentation_distillation(
        student["seg"], teacher["seg"], SegmentationDistillConfig(temperature=2, cwd=1)
    )


def boxes(outputs: Outputs) -> DetectionOutput:
    return DetectionOutput(outputs["cls"], outputs["box"], outputs["feature"])


def changed(outputs: Outputs, change: object) -> Outputs:
    return {name: change(value) for name, value in outputs.items()}


def total(found: dict[str, Term]) -> Tensor:
    return torch.stack([term.divided() for term in found.values()]).sum()


def test_every_loss_has_its_terms() -> None:
    names = set(terms(outputs(1, 0), outputs(1, 1)))
    assert names == {
        *("kd_det_guided_cls", "kd_det_guided_box", "kd_det_soft_cls", "kd_det_soft_box"),
        *("kd_det_pdf_cls", "kd_det_pdf_box", "kd_feature_pdf", "kd_feature_mse"),
        *("kd_feature_defeat_foreground", "kd_feature_defeat_background", "kd_seg_kl", "kd_seg_cwd"),
    }


def test_a_weight_scales_its_loss_and_zero_leaves_it_out() -> None:
    student, teacher = outputs(2, 0), outputs(2, 1)
    once, twice = (
        detection_distillation(boxes(student), boxes(teacher), None, DetectionDistillConfig(guided=0, mse=weight))
        for weight in (1, 2)
    )
    assert once.keys() == {"kd_feature_mse"}
    torch.testing.assert_close(twice["kd_feature_mse"].divided(), 2 * once["kd_feature_mse"].divided())


AGREE = {
    *("kd_det_guided_cls", "kd_det_guided_box", "kd_det_soft_box", "kd_det_pdf_box", "kd_seg_kl", "kd_seg_cwd"),
    *("kd_feature_mse", "kd_feature_pdf", "kd_feature_defeat_foreground", "kd_feature_defeat_background"),
}
"""Terms that are 0 where student and teacher agree."""


def test_zero_where_both_agree_and_positive_elsewhere() -> None:
    student = outputs(2, 0)
    found = terms(student, student)
    # The others are cross-entropies, which are the teacher's entropy at best.
    assert found.keys() - AGREE == {"kd_det_soft_cls", "kd_det_pdf_cls"}
    for name in AGREE:
        assert found[name].sum.item() == pytest.approx(0, abs=1e-4), name
        gradients = torch.autograd.grad(
            found[name].divided(), list(student.values()), allow_unused=True, retain_graph=True
        )
        assert all(gradient is None or gradient.abs().max() < 1e-5 for gradient in gradients), name
    assert all(term.sum > 1 for term in terms(student, outputs(2, 1)).values())


def test_gradient_leads_to_the_teacher() -> None:
    teacher = outputs(2, 1)
    for loss in terms(outputs(2, 0), teacher):
        student = outputs(2, 0)
        before = terms(student, teacher)[loss].divided()
        before.backward()
        assert all(tensor.grad is None for tensor in teacher.values())
        with torch.no_grad():
            moved = {k: v if v.grad is None else v - 1e-2 * v.grad / v.grad.norm() for k, v in student.items()}
            assert terms(moved, teacher)[loss].divided() < before, loss


def test_segmentation_losses_are_divergences_of_softened_classes_and_of_softened_maps() -> None:
    student, teacher = outputs(3, 0)["seg"], outputs(3, 1)["seg"]
    term = class_divergence(student, teacher, 4.0)["kd_seg_kl"]
    p, q = F.softmax(teacher / 4, dim=1), F.softmax(student / 4, dim=1)
    torch.testing.assert_close(term.divided(), 16 * (p * (p / q).log()).sum(dim=1).mean())
    term = channel_divergence(student, teacher, 4.0)["kd_seg_cwd"]
    p, q = F.softmax(teacher.flatten(2) / 4, dim=2), F.softmax(student.flatten(2) / 4, dim=2)
    torch.testing.assert_close(term.divided(), 16 * (p * (p / q).log()).sum(dim=2).mean())


def test_a_finer_student_is_averaged_to_the_teacher_s_resolution() -> None:
    coarse, teacher = outputs(2, 0)["seg"], outputs(2, 1)["seg"]
    fine = coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    config = SegmentationDistillConfig(cwd=1)
    for name, term in segmentation_distillation(coarse, teacher, config).items():
        torch.testing.assert_close(segmentation_distillation(fine, teacher, config)[name].sum, term.sum)


def test_terms_of_parts_add_up_in_any_order() -> None:
    student, teacher, known = outputs(5, 0), outputs(5, 1), foreground(5)
    parts = [
        terms(changed(student, lambda t: t[rows]), changed(teacher, lambda t: t[rows]), known[rows])  # noqa: B023
        for rows in ([4, 0], [2, 3, 1])
    ]
    for name, term in terms(student, teacher, known).items():
        torch.testing.assert_close(parts[0][name].sum + parts[1][name].sum, term.sum)
        torch.testing.assert_close(parts[0][name].count + parts[1][name].count, term.count)


def test_no_rows() -> None:
    student = outputs(0, 0)
    found = terms(student, outputs(0, 1))
    assert all(term.sum == 0 for term in found.values())
    assert all(not term.count.any() for term in found.values())
    total(found).backward()
    assert all(tensor.grad is not None for tensor in student.values())


def test_features_of_rows_without_boxes_do_not_count_in_defeat() -> None:
    student, teacher = outputs(3, 0), outputs(3, 1)
    known = foreground(3)
    assert (known[2] == -1).all()
    first = [boxes(changed(each, lambda t: t[:2])) for each in (student, teacher)]
    two = defeat(*first, known[:2])
    for name, term in defeat(boxes(student), boxes(teacher), known).items():
        torch.testing.assert_close(term.divided(), two[name].divided())


def test_foreground_cells_have_their_centre_in_a_box() -> None:
    corners = torch.tensor([[[0.0, 0.0, 0.2, 0.2], [0.3, 0.3, 0.9, 0.9]]])
    cells = foreground_cells(corners, torch.tensor([[0, -1]]), ANCHORS)
    assert cells.shape == (1, CELLS)
    assert cells[0].nonzero().flatten().tolist() == [0], "stride 8 of 32 pixels: one cell, and padding is no object"
    assert not foreground_cells(corners[:, :0], torch.zeros(1, 0), ANCHORS).any()


@given(st.permutations(range(4)))
def test_the_order_of_images_does_not_matter(order: list[int]) -> None:
    student, teacher, known = outputs(4, 0), outputs(4, 1), foreground(4)
    moved = terms(changed(student, lambda t: t[order]), changed(teacher, lambda t: t[order]), known[order])
    for name, term in terms(student, teacher, known).items():
        torch.testing.assert_close(moved[name].divided(), term.divided())


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_outputs(scale: float) -> None:
    student, teacher = outputs(2, 0), outputs(2, 1)
    found = terms(changed(student, lambda t: t * scale), changed(teacher, lambda t: t * 1e4))
    total(found).backward()
    assert all(term.divided().isfinite() and not term.count.requires_grad for term in found.values())
    assert all(tensor.grad.isfinite().all() for tensor in student.values())


def test_bfloat16() -> None:
    student, teacher = outputs(2, 0), outputs(2, 1)
    low = terms(changed(student, Tensor.bfloat16), changed(teacher, Tensor.bfloat16))
    for name, term in terms(student, teacher).items():
        assert low[name].sum.dtype == torch.float32
        torch.testing.assert_close(low[name].divided(), term.divided(), rtol=0.03, atol=0)
