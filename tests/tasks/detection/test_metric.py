"""Average precision against values worked out by hand, and its independence of order and sharding."""

import numpy as np
import pytest
import torch

from multas_ray.config import Protocol
from multas_ray.data.batch import AnnotatedImage
from multas_ray.tasks.detection.metric import DetectionMetric
from multas_ray.tasks.detection.postprocess import Detections
from multas_ray.tasks.detection.rows import PixelBoxes

WIDTH, HEIGHT = 200, 100
A, B, FAR = (10.0, 10.0, 50.0, 50.0), (100.0, 20.0, 160.0, 80.0), (170.0, 5.0, 195.0, 15.0)
Box = tuple[float, float, float, float]


def add(
    metric: DetectionMetric,
    image_id: str,
    found: list[tuple[Box, float, int]],
    truth: list[tuple[Box, int]],
    difficult: tuple[int, ...] = (),
    unlabelled: tuple[int, ...] = (),
) -> None:
    """Add an image of WIDTH x HEIGHT: (pixel box, score, label) found and (pixel box, label) true."""
    boxes = torch.tensor([box for box, _, _ in found]).reshape(-1, 4) / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    scores = torch.tensor([score for _, score, _ in found])
    labels = torch.tensor([label for _, _, label in found], dtype=torch.int64)
    annotation = PixelBoxes(
        np.array([box for box, _ in truth], np.float32).reshape(-1, 4),
        np.array([label for _, label in truth], np.int64),
        np.array([index in difficult for index in range(len(truth))], bool),
    )
    marks = np.isin(np.arange(len(metric.classes)), unlabelled) if unlabelled else None
    metric.add(AnnotatedImage(image_id, (HEIGHT, WIDTH), annotation, marks), Detections(boxes, scores, labels))


def test_perfect_detections_score_100_whatever_the_shape_of_the_image() -> None:
    metric = DetectionMetric(["cat", "dog"])
    add(metric, "a", [(A, 0.9, 0), (B, 0.3, 1)], [(A, 0), (B, 1)])
    result = metric.compute()
    assert result == pytest.approx(dict.fromkeys(["det/AP", "det/AP50", "det/AP75", "det/AP/cat", "det/AP/dog"], 100.0))


def test_one_false_positive_ranked_above_halves_precision() -> None:
    metric = DetectionMetric(["cat"])
    add(metric, "a", [(FAR, 0.9, 0), (A, 0.8, 0)], [(A, 0)])
    assert metric.compute()["det/AP"] == pytest.approx(50.0)


def test_a_false_positive_ranked_below_costs_nothing() -> None:
    metric = DetectionMetric(["cat"])
    add(metric, "a", [(A, 0.8, 0), (FAR, 0.1, 0)], [(A, 0)])
    assert metric.compute()["det/AP"] == pytest.approx(100.0)


def test_a_duplicate_is_a_false_positive() -> None:
    metric = DetectionMetric(["cat"])
    add(metric, "a", [(A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0)], [(A, 0), (B, 0)])
    # Recall .5 at precision 1 (51 of the 101 recalls), then recall 1 at precision 2/3 (the other 50).
    assert metric.compute()["det/AP"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [("coco", (51 + 50 * 2 / 3) / 101), ("voc2007", (6 + 5 * 2 / 3) / 11), ("voc2012", (1 + 2 / 3) / 2)],
)
def test_each_protocol_averages_in_its_own_way(protocol: Protocol, expected: float) -> None:
    metric = DetectionMetric(["cat", "dog"], protocol)
    add(metric, "a", [(A, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0)], [(A, 0), (B, 0)])
    result = metric.compute()
    assert result.keys() == {"det/AP", "det/AP50", "det/AP75", "det/AP/cat"}
    assert list(result.values()) == pytest.approx([100 * expected] * 4)


def test_a_loose_box_counts_up_to_its_iou() -> None:
    metric = DetectionMetric(["cat"])
    loose = (10.0, 10.0, 50.0, 39.0)  # IoU 0.725: right at .50, .55, .60, .65, .70
    add(metric, "a", [(loose, 0.9, 0)], [(A, 0)])
    result = metric.compute()
    assert (result["det/AP50"], result["det/AP75"]) == pytest.approx((100.0, 0.0))
    assert result["det/AP"] == pytest.approx(50.0)


@pytest.mark.parametrize("found", [[(A, 0.8, 0)], [(B, 0.9, 0), (A, 0.8, 0)]], ids=["missed", "found"])
def test_a_difficult_object_is_neither_penalised_nor_scored(found: list[tuple[Box, float, int]]) -> None:
    metric = DetectionMetric(["cat"])
    add(metric, "a", found, [(A, 0), (B, 0)], difficult=(1,))
    assert metric.compute()["det/AP"] == pytest.approx(100.0)


def test_a_class_without_objects_has_no_key_and_does_not_lower_the_mean() -> None:
    metric = DetectionMetric(["cat", "dog", "cow"])
    add(metric, "a", [(A, 0.9, 0), (FAR, 0.9, 1)], [(A, 0), (B, 2)], difficult=(1,))
    assert metric.compute() == pytest.approx(dict.fromkeys(["det/AP", "det/AP50", "det/AP75", "det/AP/cat"], 100.0))


def test_nothing_found_is_zero_and_nothing_to_find_is_no_metric() -> None:
    metric = DetectionMetric(["cat"])
    assert metric.compute() == {}
    add(metric, "empty", [(A, 0.9, 0)], [])
    assert metric.compute() == {}
    add(metric, "a", [], [(A, 0)])
    assert metric.compute() == dict.fromkeys(["det/AP", "det/AP50", "det/AP75", "det/AP/cat"], 0.0)


def random_images(count: int) -> list[tuple[str, list, list]]:
    generator = np.random.default_rng(0)
    images = []
    for number in range(count):
        corners = generator.uniform(0, 50, (4, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(20, 50, (4, 2))], axis=1)
        labels = generator.integers(0, 3, 4)
        truth = [(tuple(box), int(label)) for box, label in zip(boxes, labels, strict=True)]
        # Scores of one decimal: many ties, which only a fixed order resolves alike.
        shifted = boxes + generator.normal(0, 4, boxes.shape)
        shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
        found = [
            (tuple(box), float(generator.integers(1, 4)) / 10, label)
            for box, (_, label) in zip(shifted, truth, strict=True)
        ]
        images.append((f"image{number:02d}", found[: number % 5], truth[: (number * 3) % 5]))
    return images


@pytest.mark.parametrize("protocol", ["coco", "voc2007", "voc2012"])
def test_order_and_sharding_do_not_matter(protocol: Protocol) -> None:
    images = random_images(30)
    whole = DetectionMetric(["a", "b", "c"], protocol)
    for image in images:
        add(whole, *image)
    backwards = DetectionMetric(["a", "b", "c"], protocol)
    for image in reversed(images):
        add(backwards, *image)
    merged = DetectionMetric(["a", "b", "c"], protocol)
    for rank in (2, 0, 1):
        shard = DetectionMetric(["a", "b", "c"], protocol)
        for image in images[rank::3]:
            add(shard, *image)
        merged.merge(shard.state())
    result = whole.compute()
    assert 0 < result["det/AP"] < 100
    assert backwards.compute() == result
    assert merged.compute() == result


def test_state_is_plain_arrays_also_when_empty() -> None:
    empty = DetectionMetric(["cat"])
    assert all(isinstance(value, np.ndarray) and value.dtype != object for value in empty.state().values())
    metric = DetectionMetric(["cat"])
    add(metric, "a", [(A, 0.9, 0)], [(A, 0)])
    metric.merge(empty.state())
    empty.merge(metric.state())
    assert empty.compute() == metric.compute()


def test_an_image_that_two_workers_scored_counts_once() -> None:
    metric = DetectionMetric(["cat"])
    add(metric, "a", [(A, 0.9, 0)], [(A, 0)])
    add(metric, "b", [], [(A, 0)])
    once = metric.compute()
    metric.merge(metric.state())
    assert metric.compute() == once


def test_pycocotools_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    metric = DetectionMetric(["cat"])
    add(metric, "a", [(A, 0.9, 0)], [(A, 0)])
    metric.compute()
    assert capfd.readouterr() == ("", "")
