"""Segmentation metrics: values worked out by hand, and resolution."""

import pytest
import torch

from multas_ray.evaluate.scores import score
from multas_ray.tasks.segmentation.metric import SegmentationMetric

CLASSES = ["background", "cat", "dog"]


def test_by_hand_with_an_ignored_pixel_and_an_absent_class() -> None:
    metric = SegmentationMetric(CLASSES)
    mask = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 0]], dtype=torch.uint8)
    pred = torch.tensor([[0, 0, 2, 1], [1, 0, 1, 0]], dtype=torch.uint8)
    metric.add_labels(pred, mask)
    # background: 3 hits of 4 true, 4 found: 3 / 5; cat: 2 hits of 3 true, 2 found: 2 / 3; dog is predicted, never true.
    expected = {
        "seg/mIoU": (60 + 200 / 3) / 2,
        "seg/fwIoU": (60 * 4 + 200 / 3 * 3) / 7,
        "seg/mACC": (75 + 200 / 3) / 2,
        "seg/pACC": 100 * 5 / 7,
        "seg/IoU/background": 60.0,
        "seg/IoU/cat": 200 / 3,
    }
    assert metric.compute() == pytest.approx(expected)


def test_logits_are_scored_at_the_mask_resolution() -> None:
    coarse = torch.full((3, 2, 2), -5.0)
    coarse[0, :, 0] = coarse[1, :, 1] = 5.0
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[:, 30:] = 1
    metric = SegmentationMetric(CLASSES)
    metric.add(coarse, mask)
    assert metric.compute()["seg/mIoU"] == 100.0
    assert metric.state()["confusion"].sum() == 40 * 60


def test_shards_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randint(0, 3, (2, 9, 7), generator=generator, dtype=torch.uint8) for _ in range(7)]
    whole, merged = SegmentationMetric(CLASSES), SegmentationMetric(CLASSES)
    for pred, mask in pairs:
        whole.add_labels(pred, mask)
    for rank in range(3):
        shard = SegmentationMetric(CLASSES)
        for pred, mask in pairs[rank::3]:
            shard.add_labels(pred, mask)
        merged.merge(shard.state())
    assert merged.compute() == whole.compute()


def test_without_pixels_there_is_no_metric() -> None:
    metric = SegmentationMetric(CLASSES)
    metric.add(torch.zeros(3, 2, 2), torch.full((4, 4), 255, dtype=torch.uint8))
    assert metric.compute() == {}


def test_score_adds_what_is_there() -> None:
    assert score({"det/AP": 20.0, "seg/mIoU": 50.0, "det/AP50": 40.0}) == 70.0
    assert score({"seg/mIoU": 50.0}) == 50.0
    assert score({}) == 0.0
