"""Rows are checked against the data contract before they are written."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from multas_ray.config import Task
from multas_ray.data.image import decode_rgb
from multas_ray.data.pillow import turn_boxes, turn_mask
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, check_row
from tests.support.rows import DET, HEIGHT, SEG, WIDTH, make_row, with_exif

CLASSES: dict[Task, int] = {"det": len(DET), "seg": len(SEG)}


def reason_of(row: Row) -> str:
    """Why a row is rejected."""
    with pytest.raises(Reject) as caught:
        check_row(row, CLASSES)
    return caught.value.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: replace(row, image=row.image[: len(row.image) // 2]), "broken image"),
        (lambda row: replace(row, image=b"no image"), "broken image"),
        (lambda row: replace(row, width=31), "annotation of another size"),
        (lambda row: replace(row, boxes=np.array([[1, 2, np.nan, 12]], np.float32)), "broken box"),
        (lambda row: replace(row, boxes=np.array([[1, 2, np.inf, 12]], np.float32)), "broken box"),
        (lambda row: replace(row, labels=np.array([2], np.int32)), "unknown class"),
        (lambda row: replace(row, mask=np.zeros((HEIGHT, WIDTH + 1), np.uint8)), "mask of another size"),
        (lambda row: replace(row, mask=np.full((HEIGHT, WIDTH), 3, np.uint8)), "unknown class"),
    ],
)
def test_bad_rows_are_rejected(change: Callable[[Row], Row], reason: str) -> None:
    assert reason_of(change(make_row())) == reason


def test_a_bad_box_costs_neither_its_row_nor_the_count() -> None:
    boxes = [[-20, 0, 90, 22], [5, 5, 5, 9], [1, 1, 2, 2], [9, 2, 1, 12], [31, 3, 36, 6], [-9, 3, -1, 6]]
    row = make_row(boxes=boxes)
    row.labels = np.array([0, 1, 1, 1, 1, 1], np.int32)
    row.difficult = np.array([True, False, False, False, False, False])
    checked = check_row(row, CLASSES)
    assert checked.boxes.tolist() == [[0, 0, 30, 20], [1, 1, 2, 2]]
    assert checked.labels.tolist() == [0, 1]
    assert checked.difficult.tolist() == [True, False]
    assert +checked.notes == {
        "boxes clipped at the image's edge": 1,
        "boxes dropped: without area": 1,
        "boxes dropped: inverted": 1,
        "boxes dropped: outside their image": 2,
    }


def test_an_annotation_without_a_size_has_the_images() -> None:
    checked = check_row(replace(make_row(), height=None, width=None), CLASSES)
    assert (checked.height, checked.width) == (HEIGHT, WIDTH)
    assert checked.boxes.tolist() == make_row().boxes.tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_stored_upright_with_their_annotation(orientation: int) -> None:
    """Whichever frame the annotation was made in, it lies on the same pixels of the upright image."""
    filed = make_row()
    filed.image = with_exif(filed.image, orientation)
    upright = check_row(replace(filed, has_det=False, has_seg=False, boxes=filed.boxes[:0], mask=None), CLASSES)
    size = (upright.height, upright.width)
    assert size == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))

    assert filed.mask is not None
    boxes = turn_boxes(filed.boxes, HEIGHT, WIDTH, orientation)
    mask = turn_mask(filed.mask, orientation)
    annotated = replace(filed, height=size[0], width=size[1], boxes=boxes, mask=mask)
    frames = [annotated, filed] if orientation in (1, 5, 6, 7, 8) else [annotated]
    for row in frames:
        checked = check_row(row, CLASSES)
        assert (checked.height, checked.width) == size
        np.testing.assert_array_equal(checked.boxes, boxes)
        np.testing.assert_array_equal(checked.mask, mask)
        assert tuple(decode_rgb(checked.image, upright=True).shape[1:]) == size
        turned = row is filed and orientation != 1
        assert checked.notes["images turned upright with their annotation"] == turned
        # What is stored is turned no more.
        np.testing.assert_array_equal(decode_rgb(checked.image, upright=True), decode_rgb(checked.image, upright=False))


def test_an_image_of_a_data_set_is_not_turned_again() -> None:
    row = make_row()
    row.image = with_exif(row.image, 6)
    checked = check_row(replace(row, exif=False), CLASSES)
    assert (checked.height, checked.width) == (HEIGHT, WIDTH)
    assert checked.image == row.image
