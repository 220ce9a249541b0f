"""Any detector's answer on our anchors."""

import pytest
import torch
from torchvision.ops import box_iou

from multas_ray.config import EvaluateConfig, ModelConfig
from multas_ray.model.network import MultiTaskNet
from multas_ray.tasks.detection.anchored import anchored
from multas_ray.tasks.detection.anchors import anchors, corners, decode
from multas_ray.tasks.detection.found import Found, translated
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.postprocess import Detections, detect

ANCHORS = anchors(64, 64)


def found_in(output: DetectionOutput, nms: float = 0.5) -> list[Detections]:
    return detect(output, ANCHORS, EvaluateConfig(score_threshold=0.05, nms_iou=nms))


def test_the_detections_of_our_own_network_come_back() -> None:
    """Its raw outputs, thinned to boxes that do not overlap much, through the anchors and decoded again."""
    torch.manual_seed(0)
    config = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16, tasks=["det"])
    network = MultiTaskNet(config, {"det": ["cat", "dog", "cow"]}).eval()
    with torch.no_grad():
        network.det_head.cls.weight *= 60
        network.det_head.box.weight *= 20
        output = network(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8))["det"]
    for row in range(3):
        # An anchor stands for its best class, as a detector's list of boxes does.
        raw = DetectionOutput(output.cls[row : row + 1], output.box[row : row + 1])
        [found] = detect(raw, ANCHORS, EvaluateConfig(score_threshold=0.05, nms_iou=0.3, nms="agnostic"))
        assert len(found.scores) >= 3
        probabilities = torch.zeros(1, len(found.scores), 3)
        probabilities[0, torch.arange(len(found.scores)), found.labels] = found.scores
        # Best score first: the surest is the first with its best anchor.
        best = box_iou(found.boxes, corners(ANCHORS)).argmax(dim=1).tolist()
        kept = [place for place, anchor in enumerate(best) if anchor not in best[:place]]
        assert len(kept) > 0.9 * len(best)
        [back] = found_in(anchored(found.boxes[None], probabilities, ANCHORS))
        torch.testing.assert_close(back.scores, found.scores[kept])
        torch.testing.assert_close(back.labels, found.labels[kept])
        torch.testing.assert_close(back.boxes, found.boxes[kept], rtol=0, atol=1e-5)


def test_anchors_that_overlap_a_box_answer_for_it_and_no_others() -> None:
    box = torch.tensor([0.2, 0.2, 0.7, 0.6])
    output = anchored(box.expand(1, 1, 4), torch.tensor([[[0.9, 0.2]]]), ANCHORS)
    seen = output.cls[0, :, 0].sigmoid() > 0.5
    assert 1 <= seen.sum() < 20
    torch.testing.assert_close(output.cls[0, seen].sigmoid(), torch.tensor([0.9, 0.2]).expand(int(seen.sum()), 2))
    torch.testing.assert_close(decode(output.box[0], ANCHORS)[seen], box.expand(int(seen.sum()), 4))
    assert not output.box[0, ~seen].any()
    assert (output.cls[0, ~seen].sigmoid() < 1e-6).all()


def test_the_surest_of_detections_that_share_their_anchors_gets_them() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.7, 0.6], [0.2, 0.2, 0.7, 0.6]]])
    for scores in ([0.9, 0.4], [0.4, 0.9]):
        probabilities = torch.diag(torch.tensor(scores))[None]
        [found] = found_in(anchored(boxes, probabilities, ANCHORS))
        assert found.scores.tolist()[0] == pytest.approx(0.9)


@pytest.mark.parametrize(("images", "boxes"), [(2, 0), (0, 3), (2, 3)])
def test_without_detections_nothing_is_seen(images: int, boxes: int) -> None:
    output = anchored(torch.zeros(images, boxes, 4), torch.zeros(images, boxes, 2), ANCHORS)
    assert output.cls.shape == (images, len(ANCHORS), 2)
    assert output.box.shape == (images, len(ANCHORS), 4)
    assert not output.box.any()
    assert output.cls.isfinite().all()
    assert (output.cls.sigmoid() < 1e-6).all()


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.06])
def test_a_weak_suspicion_hides_no_sure_object(shift: float) -> None:
    """Detectors that answer with one class a box tell what they waver between by a second box, in the same place."""
    box = torch.tensor([0.2, 0.2, 0.7, 0.6])
    alone = anchored(box.expand(1, 1, 4), torch.tensor([[[0.9, 0.0]]]), ANCHORS).cls[0, :, 0].sigmoid() > 0.5
    boxes = torch.stack([box, box + shift])[None]
    for order in ([0, 1], [1, 0]):
        output = anchored(boxes[:, order], torch.tensor([[[0.9, 0.0], [0.0, 0.1]]])[:, order], ANCHORS)
        seen = output.cls[0, :, 0].sigmoid() > 0.5
        # One anchor is the other box's in any case.
        assert (alone & ~seen).sum() <= 1
        if shift < 0.05:
            found = Found(boxes[:, order], torch.tensor([[[0.9, 0.0], [0.0, 0.1]]])[:, order])
            [kept] = translated(found, [0, 1], 2).probabilities
            torch.testing.assert_close(kept, torch.tensor([[0.9, 0.1]]))


def test_two_sure_objects_share_the_anchors_by_overlap() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.7, 0.6], [0.3, 0.25, 0.8, 0.65]]])
    output = anchored(boxes, torch.tensor([[[0.9, 0.0], [0.0, 0.9]]]), ANCHORS)
    ious = box_iou(boxes[0], corners(ANCHORS))
    clear = (ious.amax(dim=0) >= 0.5) & ((ious[0] - ious[1]).abs() > 0.05)
    assert clear.sum() >= 4
    assert (output.cls[0, clear].argmax(dim=1) == ious[:, clear].argmax(dim=0)).all()


def test_classes_that_exclude_one_another_add_up() -> None:
    found = Found(torch.tensor([[[0.2, 0.2, 0.7, 0.6]]]), torch.tensor([[[0.45, 0.4, 0.1]]]))
    for exclusive, expected in ((False, [0.45, 0.1]), (True, [0.85, 0.1])):
        p = translated(found, [0, 0, 1], 2, exclusive=exclusive).probabilities
        torch.testing.assert_close(p[0, 0], torch.tensor(expected))
