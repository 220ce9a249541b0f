"""VOC's average precision by hand; golden numbers are in tests/golden."""

import numpy as np
import pytest

from multas_ray.tasks.detection.scored import IOUS, ScoredImage
from multas_ray.tasks.detection.voc_ap import voc_ap

A, B, FAR = (10.0, 10.0, 50.0, 50.0), (100.0, 20.0, 160.0, 80.0), (170.0, 5.0, 195.0, 15.0)
Box = tuple[float, float, float, float]


def image(found: list[tuple[Box, float, int]], truth: list[tuple[Box, int]], difficult: tuple[int, ...] = ()):
    return ScoredImage(
        det_boxes=np.array([box for box, _, _ in found], float).reshape(-1, 4),
        det_scores=np.array([score for _, score, _ in found], float),
        det_labels=np.array([label for _, _, label in found], int),
        gt_boxes=np.array([box for box, _ in truth], float).reshape(-1, 4),
        gt_labels=np.array([label for _, label in truth], int),
        gt_difficult=np.array([index in difficult for index in range(len(truth))], bool),
    )


def ap50(images: list[ScoredImage], eleven_points: bool = False) -> float:
    return float(voc_ap(images, 1, eleven_points)[0, 0])


def test_eleven_points_and_area_differ() -> None:
    # Right, wrong, right: precision 1 up to recall .5, then 2/3 up to recall 1.
    images = [image([(A, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0)], [(A, 0), (B, 0)])]
    assert ap50(images) == pytest.approx((1 + 2 / 3) / 2)
    assert ap50(images, eleven_points=True) == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_recall_that_is_not_reached_has_no_precision() -> None:
    images = [image([(A, 0.9, 0)], [(A, 0), (B, 0)])]
    assert ap50(images) == pytest.approx(0.5)
    assert ap50(images, eleven_points=True) == pytest.approx(6 / 11)
    assert ap50([image([], [(A, 0)])]) == 0


def test_the_overlap_must_exceed_the_threshold() -> None:
    half = (10.0, 10.0, 50.0, 30.0)  # IoU exactly .5
    assert ap50([image([(half, 0.9, 0)], [(A, 0)])]) == 0
    more = (10.0, 10.0, 50.0, 39.0)  # IoU .725
    assert voc_ap([image([(more, 0.9, 0)], [(A, 0)])], 1, False)[:, 0].tolist() == [1.0 * (iou < 0.725) for iou in IOUS]


def test_a_second_detection_of_an_object_is_wrong() -> None:
    assert ap50([image([(A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0)], [(A, 0), (B, 0)])]) == pytest.approx((1 + 2 / 3) / 2)


def test_difficult_objects_neither_help_nor_harm() -> None:
    truth = [(A, 0), (B, 0)]
    for found in ([(A, 0.5, 0)], [(B, 0.9, 0), (B, 0.8, 0), (A, 0.5, 0)]):
        assert ap50([image(found, truth, difficult=(1,))]) == 1


def test_classes_are_apart_and_one_without_objects_has_no_ap() -> None:
    result = voc_ap([image([(A, 0.9, 1), (A, 0.5, 0)], [(A, 0)])], 2, False)
    assert result[0, 0] == 1
    assert np.isnan(result[:, 1]).all()


def test_images_are_apart() -> None:
    images = [image([(A, 0.9, 0)], [(B, 0)]), image([(A, 0.8, 0)], [(A, 0)]), image([], [])]
    assert ap50(images) == pytest.approx(0.25), "wrong, then right: precision 1/2 up to recall 1/2"
