import pytest
import torch
from torch import Tensor

from multas_ray.tasks.detection.anchors import anchors, corners
from multas_ray.tasks.detection.matching import Match, iou_match, mutual_guidance, overlaps

ANCHORS = anchors(64, 64)


def match(boxes: Tensor, valid: Tensor) -> Match:
    return iou_match(overlaps(boxes, valid, corners(ANCHORS)), valid)


def test_overlaps_of_one_and_of_many_sets_of_boxes() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5]], [[0.5, 0.5, 1.0, 1.0]]])
    others = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.75, 0.5, 1.25, 1.0]])
    valid = torch.ones(2, 1, dtype=torch.bool)
    expected = torch.tensor([[[0.5, 0.0]], [[0.0, 1 / 3]]])
    torch.testing.assert_close(overlaps(boxes, valid, others), expected)
    torch.testing.assert_close(overlaps(boxes, valid, others.expand(2, -1, -1)), expected)


def test_later_box_wins_a_shared_best_anchor() -> None:
    box = torch.tensor([0.1, 0.1, 0.3, 0.3])
    found = match(torch.stack([box, box, box])[None], torch.tensor([[True, True, False]]))
    assert found.index[found.score == 1].tolist() == [1]


def test_no_boxes_and_flat_boxes() -> None:
    flat = torch.tensor([[[0.5, 0.5, 0.5, 0.9], [0.2, 0.2, 0.2, 0.2]]])
    for valid in (False, True):
        assert not match(flat, torch.full((1, 2), valid)).score.any()
    none = match(torch.zeros(0, 2, 4), torch.zeros(0, 2, dtype=torch.bool))
    assert none.index.shape == (0, len(ANCHORS))


def test_padding_changes_nothing() -> None:
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.9], [0.6, 0.6, 0.7, 0.7]]])
    padded = torch.cat([boxes, torch.rand(1, 3, 4)], dim=1)
    plain = match(boxes, torch.ones(1, 2, dtype=torch.bool))
    found = match(padded, torch.tensor([[True, True, False, False, False]]))
    assert torch.equal(plain.score, found.score)
    assert torch.equal(plain.index[plain.score > 0], found.index[plain.score > 0])


def guide(boxes: Tensor, valid: Tensor, predicted: Tensor, probability: float) -> tuple[Match, Match]:
    ious = overlaps(boxes, valid, corners(ANCHORS))
    return mutual_guidance(ious, overlaps(boxes, valid, predicted), torch.full_like(ious, probability), valid)


def test_who_predicts_a_box_well_classifies_and_who_overlaps_it_regresses() -> None:
    boxes, valid = torch.tensor([[[0.1, 0.1, 0.6, 0.6], [0.0, 0.0, 0.0, 0.0]]]), torch.tensor([[True, False]])
    predicted = torch.zeros(1, len(ANCHORS), 4)
    predicted[0, [7, 300]] = boxes[0, 0]
    classify, regress = guide(boxes, valid, predicted, 0.0)
    assert (classify.score[0] >= 3).nonzero().flatten().tolist() == [7, 300]
    best = overlaps(boxes, valid, corners(ANCHORS))[0, 0].argmax()
    assert regress.score[0].argmax() == best
    # The more certain the class, the more anchors regress the box.
    more = guide(boxes, valid, predicted, 1.0)[1]
    assert (more.score >= 3).sum() > (regress.score >= 3).sum()


@pytest.mark.parametrize("rows", [0, 2])
def test_nothing_to_guide(rows: int) -> None:
    boxes, valid = torch.zeros(rows, 1, 4), torch.zeros(rows, 1, dtype=torch.bool)
    for found in guide(boxes, valid, torch.rand(rows, len(ANCHORS), 4), 0.5):
        assert found.score.shape == (rows, len(ANCHORS))
        assert not found.score.any()
