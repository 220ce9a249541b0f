"""Outlines become the pixels that COCO means by them, and what is none is refused before any C code sees it."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from multas_ray.data.reject import Reject
from multas_ray.formats.outlines import Region, has_outline, read_region

H, W = 30, 40


def pixels(region: Region | None, height: int = H, width: int = W) -> np.ndarray:
    """(H, W) bool of a region."""
    columns = np.zeros(height * width, np.uint8)
    if region is not None:
        region.paint(columns, 1)
    return columns.reshape(width, height).T == 1


def runs(mask: np.ndarray) -> list[int]:
    """COCO's run lengths."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


def test_run_lengths_are_what_pycocotools_makes_of_them() -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        height, width = rng.integers(1, 60, 2).tolist()
        mask = (rng.random((height, width)) < rng.choice([0.02, 0.5, 0.98, 1])).astype(np.uint8)
        if number % 2:
            mask[:] = 0
            y, x = rng.integers(0, height), rng.integers(0, width)
            mask[y : y + 9, x : x + 9] = 1
        mask[0, 0] |= not mask.any()
        text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
        ys, xs = np.nonzero(mask)
        for counts in (text, f"b'{text}'", runs(mask)):
            region = read_region({"size": [height, width], "counts": counts}, height, width, Counter())
            assert region is not None
            np.testing.assert_array_equal(pixels(region, height, width), mask == 1)
            assert region.area == mask.sum()
            assert region.box(height) == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_polygons_are_what_pycocotools_makes_of_them() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        # Some reach beyond the image; those that reach very far are cut first, which moves an edge by a pixel or so.
        polygons = [(rng.random(2 * rng.integers(3, 9)) * 80 - 20).tolist() for _ in range(rng.integers(1, 4))]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, H, W))) == 1
        np.testing.assert_array_equal(pixels(read_region(polygons, H, W, Counter())), expected)
        if len(polygons) == 1:
            np.testing.assert_array_equal(pixels(read_region(polygons[0], H, W, Counter())), expected)


def test_a_corner_far_outside_costs_no_memory() -> None:
    wide = [[5, 5, 1e9, 5, 1e9, 25, 5, 25]]
    expected = np.zeros((H, W), bool)
    expected[5:25, 5:] = True
    np.testing.assert_array_equal(pixels(read_region(wide, H, W, Counter())), expected)
    # A slanted one: (5, 5), and the directions to two corners far away.
    slanted = pixels(read_region([[1e9, 0, 0, 1e9, 5, 5]], H, W, Counter()))
    np.testing.assert_array_equal(np.argwhere(slanted).min(axis=0), [5, 5])
    assert slanted.sum() == 25 * 35
    zigzag = [float(place % 2 * 150) for place in range(400_000)]
    with pytest.raises(Reject, match="pixels long"):
        read_region([[value + place % 3 for place, value in enumerate(zigzag)]], H, W, Counter())


@pytest.mark.parametrize(
    "segmentation",
    [
        [[float("nan")] * 6],
        [[1, 2, 3, 4, 5, float("inf")]],
        [[10**400, 0, 1, 1, 2, 2]],
        [["a"] * 6],
        [[[1, 2]] * 6],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, 6], 7],
        "abc",
        5,
        True,
        {},
        {"size": [65_536, 65_536], "counts": [65_536 * 65_536]},
        {"size": [W, H], "counts": [H * W]},
        {"size": [H, W], "counts": [10**30]},
        {"size": [H, W], "counts": [H * W - 1]},
        {"size": [H, W], "counts": [H * W + 5, -5]},
        {"size": [H, W], "counts": [True] * (H * W)},
        {"size": [H, W], "counts": [0.5, H * W - 0.5]},
        {"size": [H, W], "counts": []},
        {"size": [H, W], "counts": ""},
        {"size": [H, W], "counts": "0"},
        {"size": [H, W], "counts": "zz"},
        {"size": [H, W], "counts": "P" * 10_000},
        {"size": [H, W], "counts": "\udcff\n\0"},
        {"size": [H, W], "counts": None},
    ],
)
def test_what_is_no_outline_is_refused(segmentation: Any) -> None:
    with pytest.raises(Reject) as caught:
        read_region(segmentation, H, W, Counter())
    assert caught.value.reason in ("broken annotation", "mask of another size")


def test_a_cut_or_changed_string_is_refused_or_read_as_pycocotools_does() -> None:
    rng = np.random.default_rng(2)
    mask = (rng.random((H, W)) < 0.3).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    refused = 0
    for _ in range(2000):
        changed = list(text)
        for place in rng.integers(0, len(text), rng.integers(1, 4)):
            changed[place] = chr(rng.integers(32, 127))
        candidate = "".join(changed)[: rng.integers(1, len(text) + 60)]
        try:
            region = read_region({"size": [H, W], "counts": candidate}, H, W, Counter())
        except Reject:
            refused += 1
            continue
        # Run lengths that add up all the same.
        expected = coco_mask.decode({"size": [H, W], "counts": candidate}) == 1
        np.testing.assert_array_equal(pixels(region), expected)
    assert refused > 1500


def test_leftovers_are_dropped_and_counted() -> None:
    notes: Counter[str] = Counter()
    region = read_region([[1, 2, 3, 4], [], [0, 0, 10, 0, 10, 10, 0, 10]], H, W, notes)
    assert region is not None
    assert region.area == 100
    assert read_region([[90, 90, 95, 90, 95, 95]], H, W, notes) is None
    assert notes == {"polygons dropped: fewer than three points": 1, "outlines dropped: without a pixel": 1}


def test_nothing_is_no_outline() -> None:
    for nothing in (None, [], [[]], "", [[1, 2, 3, 4]]):
        assert not has_outline(nothing)
        assert read_region(nothing, H, W, Counter()) is None
    for something in ({"size": [H, W], "counts": [H * W]}, [[0, 0, 1, 0, 1, 1]], [0, 0, 1, 0, 1, 1], 7):
        assert has_outline(something)
