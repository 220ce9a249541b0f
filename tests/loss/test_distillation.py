import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.loss.detection import balanced_l1, focal_bce
from multas_ray.loss.distillation import distill_detection, distill_segmentation
from multas_ray.loss.terms import Term
from tests.loss.golden import load, relative_error
from tests.shared import shared_path

Outputs = tuple[Tensor, Tensor, Tensor]


def outputs(batch: int, seed: int) -> Outputs:
    """Class logits, box codes and segmentation logits."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((batch, 50, 4), (batch, 50, 4), (batch, 5, 8, 8))
    cls, box, seg = (torch.randn(shape, generator=g).requires_grad_() for shape in shapes)
    return cls, box, seg


def terms(student: Outputs, teacher: Outputs, temperature: float = 2.0) -> dict[str, Term]:
    detection = distill_detection(student[0], student[1], teacher[0], teacher[1])
    return detection | distill_segmentation(student[2], teacher[2], temperature)


def test_golden_pieces() -> None:
    """The published soft distillation, from the same pieces."""
    golden = load(shared_path("golden", "distillation.npz"))
    box, cls = golden["student_loc"].requires_grad_(), golden["student_logits"].requires_grad_()
    loss_l = balanced_l1(box, golden["teacher_loc"]).mean()
    loss_c = 5e3 * focal_bce(cls, golden["teacher_logits"].sigmoid(), alpha=0.25, gamma=1.0).mean()
    assert loss_l.item() == pytest.approx(golden["soft_loss_l"].item(), rel=1e-4)
    assert loss_c.item() == pytest.approx(golden["soft_loss_c"].item(), rel=1e-4)
    (loss_l + loss_c).backward()
    assert relative_error(box.grad, golden["soft_grad_loc"]) < 1e-4
    assert relative_error(cls.grad, golden["soft_grad_conf"]) < 1e-4


def test_zero_where_both_agree_and_positive_elsewhere() -> None:
    student = outputs(2, 0)
    for name, term in terms(student, student).items():
        assert term.sum.item() == pytest.approx(0, abs=1e-4), name
        assert term.count > 0
    sum(term.sum for term in terms(student, student).values()).backward()
    assert all(tensor.grad.abs().max() < 1e-5 for tensor in student)
    assert all(term.sum > 1 for term in terms(student, outputs(2, 1)).values())


def test_gradient_leads_to_the_teacher() -> None:
    student, teacher = outputs(2, 0), outputs(2, 1)
    sum(term.sum for term in terms(student, teacher).values()).backward()
    assert all(tensor.grad is None for tensor in teacher)
    with torch.no_grad():
        nearer = tuple(tensor - 0.01 * tensor.grad for tensor in student)
    before, after = terms(student, teacher), terms(nearer, teacher)
    assert all(after[name].sum < before[name].sum for name in before)


def test_segmentation_is_a_divergence_of_softened_classes() -> None:
    student, teacher = outputs(3, 0)[2], outputs(3, 1)[2]
    term = distill_segmentation(student, teacher, temperature=4.0)["kd_seg"]
    p, q = F.softmax(teacher / 4, dim=1), F.softmax(student / 4, dim=1)
    torch.testing.assert_close(term.sum, 16 * (p * (p / q).log()).sum())
    assert term.count == 3 * 8 * 8


def test_terms_of_parts_add_up_in_any_order() -> None:
    student, teacher = outputs(5, 0), outputs(5, 1)
    parts = [terms(tuple(t[rows] for t in student), tuple(t[rows] for t in teacher)) for rows in ([4, 0], [2, 3, 1])]
    for name, term in terms(student, teacher).items():
        torch.testing.assert_close(parts[0][name].sum + parts[1][name].sum, term.sum)
        torch.testing.assert_close(parts[0][name].count + parts[1][name].count, term.count)


def test_no_rows() -> None:
    student = outputs(0, 0)
    found = terms(student, outputs(0, 1))
    assert all(term == (0, 0) for term in found.values())
    sum(term.sum for term in found.values()).backward()
    assert all(tensor.grad is not None for tensor in student)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_outputs(scale: float) -> None:
    student, teacher = outputs(2, 0), outputs(2, 1)
    found = terms(tuple(t * scale for t in student), tuple(t * 1e4 for t in teacher))
    sum(term.sum for term in found.values()).backward()
    assert all(term.sum.isfinite() and not term.count.requires_grad for term in found.values())
    assert all(tensor.grad.isfinite().all() for tensor in student)


def test_bfloat16() -> None:
    student, teacher = outputs(2, 0), outputs(2, 1)
    low = terms(tuple(t.bfloat16() for t in student), tuple(t.bfloat16() for t in teacher))
    for name, term in terms(student, teacher).items():
        assert low[name].sum.dtype == torch.float32
        torch.testing.assert_close(low[name].sum, term.sum, rtol=0.02, atol=0)
