"""Images that are shrunk: what is scaled, and that nothing else changes."""

import io
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from multas_ray.data.pillow import encode
from multas_ray.data.row import Row, check_row
from multas_ray.data.shrink import shrink
from tests.support.rows import HEIGHT, WIDTH, make_row, with_exif


def drawn(format: str = "JPEG") -> Row:
    """A row of 100 x 200 pixels: a red box on blue, as a box and as pixels of a class."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[..., 2] = 200
    pixels[20:60, 40:120] = (200, 0, 0)
    mask = np.zeros((100, 200), np.uint8)
    mask[20:60, 40:120] = 1
    mask[:4] = 255
    row = make_row(boxes=[[40, 20, 120, 60], [0, 0, 200, 100], [0.5, 0.5, 1, 1]])
    row.image, row.height, row.width, row.mask = encode(Image.fromarray(pixels), format), 100, 200, mask
    row.unlabelled = {"det": (0,)}
    return check_row(row, {"det": 2, "seg": 3})


def pixels_of(row: Row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row.image)))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_image_boxes_and_mask_are_scaled_together(format):
    row = drawn(format)
    small = shrink(row, 50)
    assert (small.height, small.width) == (25, 50)
    with Image.open(io.BytesIO(small.image)) as image:
        assert (image.format, image.mode, image.size) == (format, "RGB", (50, 25))
    np.testing.assert_allclose(small.boxes, [[10, 5, 30, 15], [0, 0, 50, 25], [0.125, 0.125, 0.25, 0.25]])
    expected = np.zeros((25, 50), np.uint8)
    expected[5:15, 10:30] = 1
    expected[:1] = 255
    np.testing.assert_array_equal(small.mask, expected)
    assert small.mask.dtype == np.uint8
    # Where the box is, the image is red.
    red = pixels_of(small)[..., 0] > 100
    np.testing.assert_array_equal(red, expected == 1)
    assert small.notes - row.notes == {"images shrunk (--max-side)": 1}
    scaled = {"image", "height", "width", "boxes", "mask", "notes"}
    for name in {field.name for field in fields(Row)} - scaled:
        np.testing.assert_array_equal(getattr(small, name), getattr(row, name), err_msg=name)
    check_row(small, {"det": 2, "seg": 3})


def test_the_longer_side_counts_whichever_it_is():
    upright = drawn()
    upright.image = encode(Image.fromarray(pixels_of(upright).transpose(1, 0, 2)), "PNG")
    upright.height, upright.width, upright.mask = 200, 100, upright.mask.T.copy()
    upright.boxes = upright.boxes[:, [1, 0, 3, 2]]
    small = shrink(upright, 64)
    assert (small.height, small.width) == (64, 32)
    np.testing.assert_array_equal(small.mask, shrink(drawn(), 64).mask.T)


def test_images_that_are_small_enough_keep_their_bytes():
    row = drawn()
    assert shrink(row, 200) is row
    assert shrink(row, 201) is row
    assert shrink(row, 199).width == 199


def test_sides_that_do_not_divide_are_rounded_and_boxes_stay_inside():
    row = drawn()
    row.boxes = np.array([[0, 0, 200, 100], [199.5, 99.5, 200, 100]], np.float32)
    row.labels, row.difficult = row.labels[:2], row.difficult[:2]
    for side in (1, 3, 7, 33, 77, 199):
        small = shrink(row, side)
        assert (small.height, small.width) == (max(1, round(side / 2)), side)
        assert small.mask.shape == (small.height, small.width)
        assert small.boxes[0].tolist() == [0, 0, small.width, small.height]
        assert (small.boxes[:, 2:] > small.boxes[:, :2]).all()
        assert (small.boxes <= [small.width, small.height] * 2).all()


def test_a_box_that_loses_its_area_is_dropped_and_counted():
    row = drawn()
    # 127 and the next number of float32: scaled, both are the same number.
    row.boxes[2] = [127, 1, np.nextafter(np.float32(127), np.float32(200)), 90]
    row.labels, row.difficult = np.array([0, 1, 1], np.int32), np.array([False, True, False])
    assert check_row(row, {"det": 2, "seg": 3}).boxes.shape == (3, 4)
    small = shrink(row, 101)
    assert len(small.boxes) == 2
    assert (small.labels.tolist(), small.difficult.tolist()) == ([0, 1], [False, True])
    assert small.notes["boxes dropped: without area"] == 1


def test_a_row_without_boxes_or_mask_stays_one():
    row = check_row(drawn().only(None), {"det": 2, "seg": 3})
    small = shrink(row, 50)
    assert (small.has_det, small.has_seg, small.mask, len(small.boxes)) == (False, False, None, 0)
    # No note of dropped boxes, by which a split would be refused.
    assert small.notes == {"images shrunk (--max-side)": 1}


def test_what_exif_turned_is_turned_once():
    row = make_row()
    row.image = with_exif(row.image, 6)
    row.mask, row.height, row.width = None, None, None
    row.has_seg = False
    checked = check_row(row, {"det": 2, "seg": 3})
    assert (checked.height, checked.width) == (WIDTH, HEIGHT)
    small = shrink(checked, WIDTH // 2)
    assert (small.height, small.width) == (WIDTH // 2, HEIGHT // 2)
    # Where the data set's images are upright whatever their EXIF says, it is not turned at all.
    stored = check_row(make_row(), {"det": 2, "seg": 3})
    stored.image = with_exif(stored.image, 6)
    kept = shrink(stored, 15)
    assert (kept.height, kept.width) == pixels_of(kept).shape[:2] == (10, 15)
