import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from multas_ray.config import LossConfig
from multas_ray.tasks.detection.anchors import anchors, corners, decode
from multas_ray.tasks.detection.loss import (
    balanced_l1,
    detection_losses,
    focal_background,
    focal_bce,
    quality_focal_bce,
)
from multas_ray.tasks.detection.matching import CHOSEN, iou_match, mutual_guidance, overlaps
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.tasks.terms import Term

ANCHORS = anchors(64, 64)
CLASSES = 4


def losses(cls: Tensor, box: Tensor, targets: dict[str, Tensor], **config: object) -> dict[str, Term]:
    output, truth = DetectionOutput(cls, box), UnitBoxes(**targets)
    return detection_losses(output, truth, ANCHORS, LossConfig.model_validate(config))


def match_scores(boxes: Tensor, valid: Tensor) -> Tensor:
    return iou_match(overlaps(boxes, valid, corners(ANCHORS)), valid).score


every_form = pytest.mark.parametrize(
    "form",
    [
        {"matching": matching, "classification": classification}
        for matching in ("iou", "mutual_guidance")
        for classification in ("focal", "generalized_focal")
    ],
    ids=lambda form: " ".join(form.values()),
)


def sample(batch: int, seed: int = 0, objects: int = 4) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, objects, 2, generator=g) * 0.6
    boxes = torch.cat([corner, corner + 0.05 + 0.35 * torch.rand(batch, objects, 2, generator=g)], dim=-1)
    targets = {
        "boxes": boxes,
        "labels": torch.randint(-1, CLASSES, (batch, objects), generator=g),
        "difficult": torch.rand(batch, objects, generator=g) < 0.3,
    }
    cls = torch.randn(batch, len(ANCHORS), CLASSES, generator=g).requires_grad_()
    return cls, torch.randn(batch, len(ANCHORS), 4, generator=g).requires_grad_(), targets


@every_form
def test_terms_of_parts_add_up(form: dict[str, str]) -> None:
    cls, box, targets = sample(6)
    whole = losses(cls, box, targets, **form)
    parts = [
        losses(cls[rows], box[rows], {k: v[rows] for k, v in targets.items()}, **form)
        for rows in (slice(2), slice(2, 6))
    ]
    for name, term in whole.items():
        torch.testing.assert_close(sum(part[name].sum for part in parts), term.sum)
        torch.testing.assert_close(sum(part[name].count for part in parts), term.count)


@every_form
@given(order=st.permutations(range(4)), seed=st.integers(0, 100))
def test_the_order_of_images_does_not_matter(form: dict[str, str], order: list[int], seed: int) -> None:
    cls, box, targets = sample(4, seed)
    moved = losses(cls[order], box[order], {k: v[order] for k, v in targets.items()}, **form)
    for name, term in losses(cls, box, targets, **form).items():
        torch.testing.assert_close(moved[name].sum, term.sum)


@every_form
@given(order=st.permutations(range(4)), seed=st.integers(0, 100))
def test_the_order_of_objects_does_not_matter(form: dict[str, str], order: list[int], seed: int) -> None:
    cls, box, targets = sample(4, seed)
    assume(_no_anchor_is_a_draw(cls, box, targets))
    moved = losses(cls, box, {k: v[:, order] for k, v in targets.items()}, **form)
    for name, term in losses(cls, box, targets, **form).items():
        torch.testing.assert_close(moved[name].sum, term.sum)


@torch.no_grad()
def _no_anchor_is_a_draw(cls: Tensor, box: Tensor, targets: dict[str, Tensor]) -> bool:
    """Whether no two boxes have an equal claim to an anchor: of a draw the order of objects decides."""
    boxes, labels = targets["boxes"], targets["labels"]
    classes = labels.clamp(min=0)[:, None].expand(-1, len(ANCHORS), -1)
    probabilities = cls.sigmoid().gather(2, classes).transpose(1, 2)
    forced = 0
    for valid in ((labels >= 0) & kind for kind in _kinds(targets)):
        # Two boxes may have the same best anchor.
        forced += int((match_scores(boxes, valid) == 1).sum())
        # Mutual Guidance lets a box choose an anchor without any overlap where others have taken all that it has.
        ious, predicted = (overlaps(boxes, valid, others) for others in (corners(ANCHORS), decode(box, ANCHORS)))
        if any((found.score == CHOSEN).any() for found in mutual_guidance(ious, predicted, probabilities, valid)):
            return False
    return forced == int((labels >= 0).sum())


def _kinds(targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return targets["difficult"], ~targets["difficult"]


@every_form
@pytest.mark.parametrize("objects", [0, 3])
def test_annotated_and_empty_is_background(objects: int, form: dict[str, str]) -> None:
    cls, box, targets = sample(2, objects=objects)
    targets["labels"].fill_(-1)
    terms = losses(cls, box, targets, **form)
    assert terms["det_box"][:2] == (0, 0)
    assert terms["det_cls"].sum > 0
    assert terms["det_cls"].count == 0
    sum(term.sum for term in terms.values()).backward()
    assert (cls.grad > 0).all()
    assert not box.grad.any()


@every_form
def test_no_rows(form: dict[str, str]) -> None:
    cls, box, targets = sample(0)
    terms = losses(cls, box, targets, **form)
    assert all(term[:2] == (0, 0) for term in terms.values())
    sum(term.sum for term in terms.values()).backward()
    assert cls.grad is not None
    assert box.grad is not None


def test_difficult_objects_are_neither_object_nor_background() -> None:
    cls, box, targets = sample(1, objects=1)
    targets["labels"].fill_(2)
    targets["difficult"].fill_(True)
    ious = overlaps(targets["boxes"], targets["difficult"], corners(ANCHORS))[:, 0]
    near = ious >= ious.max().clamp(max=0.4)
    terms = losses(cls, box, targets)
    sum(term.sum for term in terms.values()).backward()
    assert terms["det_box"][:2] == (0, 0)
    assert near.any()
    assert not cls.grad[near].any()
    assert (cls.grad[~near] > 0).all()


def test_difficult_object_takes_no_positives_away() -> None:
    cls, box, targets = sample(1, objects=1)
    targets["labels"].fill_(2)
    targets["difficult"].fill_(False)
    alone = losses(cls, box, targets)
    doubled = {name: value.repeat_interleave(2, dim=1) for name, value in targets.items()}
    doubled["difficult"][0, 1] = True
    both = losses(cls, box, doubled)
    assert both["det_box"] == alone["det_box"]
    assert both["det_cls"].count == alone["det_cls"].count


def test_band_is_ignored_in_the_matched_class_only() -> None:
    cls, box, targets = sample(1, objects=1)
    # The finest square, moved by three pixels in both directions: IoU 0.47 with the anchor it comes from.
    targets["boxes"] = torch.tensor([[[11.0, 11.0, 35.0, 35.0]]]) / 64
    targets["labels"].fill_(2)
    targets["difficult"].fill_(False)
    overlap = match_scores(targets["boxes"], targets["labels"] >= 0)
    band = (overlap >= 0.4) & (overlap < 0.5)
    losses(cls, box, targets)["det_cls"].sum.backward()
    assert band.any()
    # A sum over all columns with these taken out again: the rest of it is rounding.
    assert cls.grad[band][:, 2].abs().max() < 1e-6
    assert (cls.grad[band][:, [0, 1, 3]] > 0).all()


@every_form
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_outputs_and_boxes_without_area(form: dict[str, str], gamma: float, scale: float) -> None:
    cls, box, targets = sample(2)
    targets["labels"][0] = 1
    targets["boxes"][0, 0, 2:] = targets["boxes"][0, 0, :2]
    terms = losses(cls * scale, box * scale, targets, focal_gamma=gamma, **form)
    sum(term.sum for term in terms.values()).backward()
    assert all(term.sum.isfinite() for term in terms.values())
    assert cls.grad.isfinite().all()
    assert box.grad.isfinite().all()


def test_bfloat16() -> None:
    cls, box, targets = sample(2)
    for name, term in losses(cls.bfloat16(), box.bfloat16(), targets).items():
        assert term.sum.dtype == torch.float32
        torch.testing.assert_close(term.sum, losses(cls, box, targets)[name].sum, rtol=0.02, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_background_is_the_focal_loss_of_target_zero(gamma: float) -> None:
    logits = (3 * torch.randn(5, 7, 4, dtype=torch.float64)).requires_grad_()
    torch.autograd.gradcheck(lambda x: focal_background(x, 0.75, gamma), logits)
    general = focal_bce(logits, torch.zeros_like(logits), 0.25, gamma).sum(dim=-1)
    torch.testing.assert_close(focal_background(logits, 0.75, gamma), general)


def test_balanced_l1() -> None:
    x = torch.tensor([0.0, 0.11 - 1e-6, 0.11 + 1e-6, 2.0, -2.0], requires_grad=True)
    y = balanced_l1(x, torch.zeros(5))
    y.sum().backward()
    assert y[0] == 0
    torch.testing.assert_close(y[1], y[2], rtol=1e-3, atol=0)
    torch.testing.assert_close(x.grad[[0, 3, 4]], torch.tensor([0, 1.5, -1.5]))


def test_focal_losses() -> None:
    logits, target = torch.randn(100), torch.rand(100).round()
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(focal_bce(logits, target, alpha=0.5, gamma=0.0), plain / 2)
    torch.testing.assert_close(focal_bce(logits, target, 0.5, 2.0) * 2, quality_focal_bce(logits, target))
    assert not quality_focal_bce(logits, logits.sigmoid()).any()
