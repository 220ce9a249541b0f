import numpy as np
import torch

from multas_ray.loss.matching import iou_match
from multas_ray.model.anchors import anchors
from tests.loss.golden import detection_targets
from tests.shared import shared_path

ANCHORS = anchors(64, 64)


def test_golden() -> None:
    golden, boxes, labels = detection_targets(shared_path("golden", "detection.npz"))
    match = iou_match(boxes, labels >= 0, golden["anchors_cxcywh"])
    for image in range(3):
        torch.testing.assert_close(match.overlap[image], golden[f"iou_match_overlap_{image}"])
        index = match.index[image]
        torch.testing.assert_close(boxes[image][index], golden[f"iou_match_box_{image}"])
        np.testing.assert_array_equal(labels[image][index] + 1, golden[f"iou_match_label_{image}"])


def test_later_box_wins_a_shared_best_anchor() -> None:
    box = torch.tensor([0.1, 0.1, 0.3, 0.3])
    match = iou_match(torch.stack([box, box, box])[None], torch.tensor([[True, True, False]]), ANCHORS)
    assert match.index[match.overlap == 1].tolist() == [1]


def test_no_boxes_and_flat_boxes() -> None:
    flat = torch.tensor([[[0.5, 0.5, 0.5, 0.9], [0.2, 0.2, 0.2, 0.2]]])
    for valid in (False, True):
        match = iou_match(flat, torch.full((1, 2), valid), ANCHORS)
        assert not match.overlap.any()
    assert iou_match(torch.zeros(0, 2, 4), torch.zeros(0, 2, dtype=torch.bool), ANCHORS).index.shape == (
        0,
        len(ANCHORS),
    )


def test_padding_changes_nothing() -> None:
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.9], [0.6, 0.6, 0.7, 0.7]]])
    padded = torch.cat([boxes, torch.rand(1, 3, 4)], dim=1)
    plain = iou_match(boxes, torch.ones(1, 2, dtype=torch.bool), ANCHORS)
    found = iou_match(padded, torch.tensor([[True, True, False, False, False]]), ANCHORS)
    assert torch.equal(plain.overlap, found.overlap)
    assert torch.equal(plain.index[plain.overlap > 0], found.index[plain.overlap > 0])
