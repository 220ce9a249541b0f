"""Generated scenes: exact, repeatable, and true to the contract."""

import numpy as np
import pytest

from multas_ray.data.row import check_row
from multas_ray.formats import scenes


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    for one, other in zip(scenes.scene(5, 17), scenes.scene(5, 17), strict=True):
        np.testing.assert_array_equal(one, other)
    one, other = (scenes.read(scenes.Options(train=3, val=0, seed=5, size=64)).splits["train"] for _ in range(2))
    assert [one.read(number).image for number in one.items] == [other.read(number).image for number in other.items]
    assert not np.array_equal(scenes.scene(5, 17).image, scenes.scene(5, 18).image)
    assert not np.array_equal(scenes.scene(5, 17).image, scenes.scene(6, 17).image)


@pytest.mark.parametrize("size", [64, 128])
def test_boxes_are_tight_around_visible_pixels(size: int) -> None:
    seen = np.zeros(len(scenes.CLASSES), int)
    for index in range(60):
        scene = scenes.scene(0, index, size)
        owner, objects = scenes._arrange(np.random.default_rng((0, index)), size)
        labels = [thing.label for thing in objects]
        np.testing.assert_array_equal(labels, scene.labels)
        assert len(scene.boxes) == len(labels) <= scenes.MAX_OBJECTS
        np.testing.assert_array_equal(scene.mask > 0, owner >= 0)
        for number, (box, label) in enumerate(zip(scene.boxes, labels, strict=True)):
            y, x = np.nonzero(owner == number)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert len(x) >= scenes.MIN_VISIBLE_PIXELS
            assert (scene.mask[y, x] == label + 1).all()
            seen[label] += 1
    assert (seen > 0).all()


@pytest.mark.parametrize("label", range(len(scenes.CLASSES)))
def test_shapes_have_their_size_and_turn_with_the_angle(label: int) -> None:
    centre = np.array([40.0, 30.0])
    upright = scenes._silhouette(scenes._Object(label, centre, 20.0, 0.0), 80)
    turned = scenes._silhouette(scenes._Object(label, centre, 20.0, 0.4), 80)
    y, x = np.nonzero(upright)
    assert x.min() >= 18
    assert x.max() <= 61
    assert y.min() >= 8
    assert y.max() <= 51
    assert upright.sum() == pytest.approx(turned.sum(), rel=0.05)
    assert 0.2 < upright.sum() / 40**2 < 0.7


def test_rows_keep_the_data_contract() -> None:
    split = scenes.read(scenes.Options(train=5, size=96, seed=1)).splits["train"]
    for row in map(split.read, split.items):
        checked = check_row(row, {"det": len(scenes.CLASSES), "seg": len(scenes.CLASSES) + 1})
        assert not +checked.notes
        assert checked.image is row.image
        assert checked.task_mask == "both"
