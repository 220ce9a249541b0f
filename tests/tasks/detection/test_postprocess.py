"""Logits and codes to boxes: coding, thresholds, and suppression class by class."""

import pytest
import torch

from multas_ray.config import EvaluateConfig
from multas_ray.tasks.detection.anchors import encode
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.postprocess import CANDIDATES, detect

ANCHORS = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.4]])
OFF = -20.0


def logits(*positive: tuple[int, int, float], classes: int = 2) -> torch.Tensor:
    """(1, 3, C) logits, `OFF` but for (anchor, class, logit)."""
    cls = torch.full((1, len(ANCHORS), classes), OFF)
    for anchor, label, value in positive:
        cls[0, anchor, label] = value
    return cls


def config_of(**settings) -> EvaluateConfig:
    return EvaluateConfig(score_threshold=0.05, **settings)


def run(cls: torch.Tensor, box: torch.Tensor | None = None, nms_iou: float = 0.5, most: int = 100):
    box = torch.zeros(1, len(ANCHORS), 4) if box is None else box
    return detect(DetectionOutput(cls, box), ANCHORS, config_of(nms_iou=nms_iou, max_detections=most))[0]


def test_decodes_to_fractions_of_the_image() -> None:
    wanted = torch.tensor([[0.1, 0.2, 0.5, 0.4]]).expand(3, 4)
    found = run(logits((2, 1, 0.0)), encode(wanted, ANCHORS)[None])
    torch.testing.assert_close(found.boxes, wanted[:1])
    assert found.scores.tolist() == pytest.approx([0.5])
    assert found.labels.tolist() == [1]
    assert (found.boxes.dtype, found.labels.dtype) == (torch.float32, torch.int64)


def test_overlapping_boxes_of_one_class_are_suppressed_those_of_two_are_kept() -> None:
    same = run(logits((0, 0, 1.0), (1, 0, 2.0)))
    assert same.labels.tolist() == [0]
    assert same.scores.item() == pytest.approx(torch.tensor(2.0).sigmoid().item())
    other = run(logits((0, 0, 1.0), (1, 1, 2.0)))
    assert other.labels.tolist() == [1, 0], "best score first"


def test_agnostic_suppression_keeps_an_anchor_s_best_class_and_one_of_two_classes() -> None:
    cls = logits((0, 0, 2.0), (0, 1, 1.0), (1, 1, 1.5), (2, 0, 0.0))
    output = DetectionOutput(cls, torch.zeros(1, len(ANCHORS), 4))
    found = detect(output, ANCHORS, config_of(nms="agnostic"))[0]
    assert found.labels.tolist() == [0, 0], "anchor 1 overlaps anchor 0, whose class 1 is its second best"
    assert len(run(cls).labels) == 3


def test_boxes_are_clamped_and_a_box_beside_the_image_is_dropped() -> None:
    boxes = torch.tensor([[-0.5, -0.5, 0.2, 0.2], [1.1, 0.1, 1.4, 0.4], [0.6, 0.5, 1.5, 1.5]])
    found = run(logits((0, 0, 3.0), (1, 0, 2.0), (2, 0, 1.0)), encode(boxes, ANCHORS)[None])
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.6, 0.5, 1.0, 1.0]]))


def test_keeps_the_best_up_to_the_limit() -> None:
    assert run(logits((0, 0, 1.0), (2, 0, 3.0), (2, 1, 2.0)), most=2).labels.tolist() == [0, 1]


def test_images_of_a_batch_do_not_mix() -> None:
    cls = torch.cat([logits((0, 0, 1.0)), logits(), logits((1, 1, 1.0))])
    found = detect(DetectionOutput(cls, torch.zeros(3, 3, 4)), ANCHORS, config_of())
    assert [image.labels.tolist() for image in found] == [[0], [], [1]]
    assert found[1].boxes.shape == (0, 4)


def test_more_candidates_than_enter_suppression() -> None:
    anchors = torch.rand(CANDIDATES, 4, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.4
    output = DetectionOutput(torch.zeros(1, CANDIDATES, 3), torch.zeros(1, CANDIDATES, 4))
    found = detect(output, anchors, config_of(nms_iou=1.0, max_detections=10**6))[0]
    assert len(found.scores) == CANDIDATES


def test_half_precision_outputs() -> None:
    cls = logits((0, 0, 1.0)).bfloat16()
    assert run(cls, torch.zeros(1, 3, 4).bfloat16()).boxes.dtype == torch.float32
