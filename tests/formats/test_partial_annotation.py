"""The draw of partial annotation."""

import numpy as np
import pytest

from multas_ray.data.row import Reject, Row
from multas_ray.errors import UserError
from multas_ray.formats.partial_annotation import draw_partial, parse_fractions, partially_annotated
from multas_ray.formats.source import Split

IDS = [f"{i:03d}" for i in range(101)]


def test_each_row_keeps_one_task() -> None:
    kept = draw_partial(IDS, {"det": 0.5, "seg": 0.5}, seed=0)
    assert sorted(kept) == IDS
    assert sorted(map(list(kept.values()).count, ("det", "seg"))) == [50, 51]


def test_the_rest_keeps_neither() -> None:
    kept = list(draw_partial(IDS[:100], {"seg": 0.3, "det": 0.1}, seed=0).values())
    assert (kept.count("det"), kept.count("seg"), kept.count(None)) == (10, 30, 60)


def test_it_depends_on_the_ids_and_the_seed_alone() -> None:
    half = {"det": 0.5, "seg": 0.5}
    assert draw_partial(IDS, half, 3) == draw_partial(reversed(IDS), half, 3)
    assert draw_partial(IDS, half, 3) != draw_partial(IDS, half, 4)


def test_a_given_up_annotation_is_removed() -> None:
    boxes = np.array([[0, 0, 2, 2]], np.float32)
    mask = np.ones((4, 4), np.uint8)
    full = {"has_det": True, "has_seg": True, "boxes": boxes, "labels": np.ones(1), "difficult": np.ones(1)}
    bad = Reject("broken image", image_id="d")
    rows = {name: Row(name, b"", 4, 4, **full, mask=mask) for name in ("a", "b", "c")} | {"d": bad, "e": None}
    ids = list(rows)
    split = partially_annotated(Split(ids, rows.get), ids, {"det": 0.2, "seg": 0.2}, seed=16)
    assert [task for _, task in split.items][:3] == ["det", "seg", None]
    det, seg, none, passed, skipped = (split.read(item) for item in split.items)
    assert passed is bad
    assert skipped is None
    assert (det.has_det, det.has_seg, len(det.boxes), det.mask) == (True, False, 1, None)
    assert (seg.has_det, seg.has_seg, len(seg.boxes), len(seg.labels), len(seg.difficult)) == (False, True, 0, 0, 0)
    assert seg.mask is mask
    assert (none.has_det, none.has_seg, len(none.boxes), none.mask) == (False, False, 0, None)


def test_fractions_are_read_from_text() -> None:
    assert parse_fractions("det=0.7,seg=0.3") == {"det": 0.7, "seg": 0.3}
    assert parse_fractions("seg=1") == {"seg": 1.0}


@pytest.mark.parametrize(
    "text", ["", "det", "det=x", "det=nan", "depth=0.5", "det=-0.1", "det=0.6,seg=0.6", "det=0.1,det=0.2"]
)
def test_unusable_fractions(text: str) -> None:
    with pytest.raises(UserError, match="--partial"):
        parse_fractions(text)
