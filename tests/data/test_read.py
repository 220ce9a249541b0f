"""Rows as the stream and all else read them: one that breaks the data contract is left out, and says why."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import ImageFile

from multas_ray.config import AugmentConfig
from multas_ray.data.batch import RejectedRow
from multas_ray.data.collate import make_eval_batch, make_train_batch
from multas_ray.data.describe import count
from multas_ray.data.index import Index, read_index
from multas_ray.data.plan import EvaluationPlan, Part
from multas_ray.data.read import read_row, read_sample
from multas_ray.data.reject import Reject
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.formats import holdout
from tests.support.shards import HEIGHT, WIDTH, changed, encoded, row, table_of, write_set

NONE = {"boxes": [], "labels": [], "difficult": []}
BIG = np.zeros((HEIGHT, WIDTH + 1), np.uint8)


def one_part(index: Index, size: int = 32) -> Part:
    """All rows of a split as one batch."""
    rows = np.arange(len(index))
    return Part(0, 0, size, rows, rows * 0, rows * 0, rows.astype(np.uint64))


@pytest.mark.parametrize(
    ("faulty", "reason", "detail"),
    [
        *[
            ({name: None}, "no value", f"'{name}' is null")
            for name in ("image", "height", "has_det", "boxes", "labels")
        ],
        ({"mask": None}, "no value", "'mask' is null"),
        ({"labels": [1, None]}, "no value", "'labels' is null, or holds a null"),
        ({"difficult": [None, True]}, "no value", "'difficult' is null, or holds a null"),
        ({"boxes": [None, [1, 2, 3, 4]]}, "no value", "'boxes' is null, or holds a null"),
        ({"image_id": ""}, "unusable image_id", "''"),
        ({"image_id": "a\0b"}, "unusable image_id", r"'a\x00b'"),
        ({"width": 0}, "impossible size", "height 20, width 0"),
        ({"height": 2**31 - 1, "width": 2**31 - 1}, "impossible size", "height 2147483647, width 2147483647"),
        ({"labels": [1]}, "lists of different lengths", "2 boxes, 1 labels, 2 difficult"),
        ({"difficult": []}, "lists of different lengths", "2 boxes, 2 labels, 0 difficult"),
        ({"boxes": [[1, 2, 3, 4], [1, 2, float("nan"), 4]]}, "broken box", "[1.0, 2.0, nan, 4.0] in 30x20 pixels"),
        ({"boxes": [[1, 2, float("inf"), 4]] * 2}, "broken box", "[1.0, 2.0, inf, 4.0] in 30x20 pixels"),
        ({"boxes": [[1, 2, None, 4]] * 2}, "broken box", "[1.0, 2.0, nan, 4.0] in 30x20 pixels"),
        ({"boxes": [[1, 2, 31.5, 4]] * 2}, "box outside its image", "[1.0, 2.0, 31.5, 4.0] in 30x20 pixels"),
        ({"boxes": [[9, 2, 1, 4]] * 2}, "inverted or empty box", "[9.0, 2.0, 1.0, 4.0] in 30x20 pixels"),
        ({"boxes": [[9, 2, 9, 4]] * 2}, "inverted or empty box", "[9.0, 2.0, 9.0, 4.0] in 30x20 pixels"),
        ({"labels": [0, 2]}, "unknown class", "label 2, 2 classes are in dataset.json"),
        ({"labels": [-1, 0]}, "unknown class", "label -1, 2 classes are in dataset.json"),
        ({"image": b"no image"}, "broken image", "an image"),
        ({"image": encoded(BIG)}, "image of another size", "it has 31x20 pixels, its row says 30x20"),
        ({"mask": encoded(BIG)}, "mask of another size", "it has 31x20 pixels, its row says 30x20"),
        ({"mask": b""}, "broken mask", "an empty file"),
        (
            {"mask": encoded(BIG[:, 1:] + np.uint8(3))},
            "unknown class",
            "mask values [3], 3 classes are in dataset.json",
        ),
        ({"mask": encoded(np.stack([BIG[:, 1:]] * 3, axis=2))}, "broken mask", "class ids are needed"),
    ],
    ids=str,
)
def test_a_row_that_breaks_the_contract_is_left_out_and_named(
    tmp_path: Path, faulty: dict[str, Any], reason: str, detail: str
) -> None:
    index = read_index(write_set(tmp_path, table_of([row(0), row(1, **faulty), row(2)])), "train")
    with pytest.raises(Reject) as caught:
        read_sample(index, 1)[1]["image"].pixels()
    assert caught.value.reason == reason
    assert detail.removeprefix("an image") in caught.value.detail
    for augment in (AugmentConfig(), None):
        part = one_part(index)
        batch = make_train_batch(index, part, augment) if augment else make_eval_batch(index, part)
        assert batch.ids == ("image0", "image2")
        named = faulty.get("image_id", "image1")
        assert batch.rejected == (RejectedRow(named or "row 1", reason, caught.value.detail),)
    # What comes after the faulty row is its own.
    assert read_row(index, 2)["labels"].tolist() == [1, 0]
    assert read_row(index, 2)["boxes"].tolist() == [[1, 2, 10, 12], [0, 0, 30, 20]]


def test_a_row_without_a_name_goes_by_its_number(tmp_path: Path) -> None:
    index = read_index(write_set(tmp_path, table_of([row(0), row(1, image_id=None)])), "train")
    assert make_eval_batch(index, one_part(index)).rejected == (
        RejectedRow("row 1", "no value", "'image_id' is null, or holds a null"),
    )


def test_boxes_of_five_numbers_reject_their_row_alone(tmp_path: Path) -> None:
    rows = [row(0), row(1, boxes=[[1, 2, 3, 4], [1, 2, 3, 4, 0.5]]), row(2)]
    types = pa.list_(pa.list_(pa.float64()))
    table = changed(table_of([{**each, "boxes": []} for each in rows]), "boxes", types)
    table = table.set_column(table.column_names.index("boxes"), "boxes", pa.array([r["boxes"] for r in rows], types))
    index = read_index(write_set(tmp_path, table), "train")
    with pytest.raises(Reject, match="broken box"):
        read_row(index, 1)
    assert read_row(index, 2)["boxes"].tolist() == [[1, 2, 10, 12], [0, 0, 30, 20]]


def test_numbers_beyond_32_bits_are_as_wrong_as_they_are(tmp_path: Path) -> None:
    table = table_of([row(0)])
    wide = {"width": pa.array([2**32 + WIDTH], pa.int64()), "labels": pa.array([[2**64 - 1, 0]], pa.list_(pa.uint64()))}
    for name, column in wide.items():
        other = table.set_column(table.column_names.index(name), name, column)
        with pytest.raises(Reject, match=r"impossible size|unknown class"):
            read_row(read_index(write_set(tmp_path / name, other), "train"), 0)


def test_a_box_a_pixel_outside_is_clipped(tmp_path: Path) -> None:
    """As programs write it that count pixels from 1, or whose boxes end at their last pixel."""
    boxes = [[1, 1, WIDTH + 1, HEIGHT + 1], [-1, -0.5, 5, 5]]
    index = read_index(write_set(tmp_path, table_of([row(0, boxes=boxes)])), "train")
    assert read_row(index, 0)["boxes"].tolist() == [[1, 1, 30, 20], [0, 0, 5, 5]]


def test_what_a_row_is_not_annotated_for_is_not_looked_at(tmp_path: Path) -> None:
    rows = [row(0, has_det=False, boxes=None, labels=[7, None], difficult=None), row(1, has_seg=False, mask=b"no mask")]
    index = read_index(write_set(tmp_path, table_of(rows)), "train")
    first, second = (read_sample(index, number) for number in (0, 1))
    assert {name: first[0][name].tolist() for name in NONE} == NONE
    assert first[1].keys() == {"image", "mask"}
    assert second[0]["mask"] is None
    assert second[1].keys() == {"image", "boxes", "labels", "difficult"}


@pytest.mark.parametrize("what", ["image", "mask"])
def test_a_large_image_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    large = encoded(np.zeros((9000, 9000), np.uint8))
    index = read_index(write_set(tmp_path, table_of([row(0, **{what: large})])), "train")
    load = ImageFile.ImageFile.load

    def small(image: ImageFile.ImageFile) -> Any:
        assert image.size == (WIDTH, HEIGHT), "memory for its pixels"
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", small)
    with pytest.raises(Reject, match="9000x9000"):
        read_sample(index, 0)[1]["image"].pixels()


def test_a_data_set_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    for boxes in ([[1.0, 2.0, 10.0, 12.0]], [[1.0, 2.0, 13.0, 12.0]]):
        one = row(0, boxes=boxes, labels=[0], difficult=[False])
        index = read_index(write_set(tmp_path, table_of([one])), "train")
        assert read_row(index, 0)["boxes"].tolist() == boxes


def test_faulty_rows_are_counted_apart_and_not_held_out(tmp_path: Path) -> None:
    rows = [row(0), row(1, labels=[0, 5]), row(2, mask=b"no mask"), row(3)]
    path = write_set(tmp_path, table_of(rows), row_group_size=3)
    index, told = read_index(path, "train"), []
    found = count(index, read_info(path), told.append)
    assert [(each.image_id, each.reason) for each in found.rejected] == [
        ("image1", "unknown class"),
        ("image2", "broken mask"),
    ]
    assert found.rows == {"none": 0, "det": 0, "seg": 0, "both": 4}
    assert (found.boxes.tolist(), found.difficult.tolist(), told) == ([1, 3], [1, 1], [3, 1])
    assert found.pixels.sum() == 2 * HEIGHT * WIDTH
    rest = holdout.read(holdout.Options(data=path, fraction=0)).splits["train"]
    assert [isinstance(rest.read(number), Reject) for number in rest.items] == [False, True, True, False]


def test_a_shard_that_changed_under_a_run_ends_it_in_one_line(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", table_of([row(0), row(1), row(2)]), row_group_size=2)
    plan = EvaluationPlan(read_index(path, "train"), 3, 32)
    others = {
        "fewer rows": (table_of([row(0)]), "has fewer rows than when the run began"),
        "fewer groups": (table_of([row(0), row(1)]), "has 1 row groups, number 1 is gone"),
        "other columns": (changed(table_of([row(0)] * 3), "labels", pa.list_(pa.float64())), "column 'labels' is of"),
        "no file": (b"PAR1", "not a readable Parquet file"),
    }
    for name, (table, words) in others.items():
        moved = write_set(tmp_path / name, table)
        shutil.copy(Path(path) / "dataset.json", moved)
        index = replace(plan.index, origins=(replace(plan.index.origins[0], path=moved),))
        with pytest.raises(UserError, match=words):
            make_eval_batch(index, one_part(index))
    (tmp_path / "no file" / "train" / "part.parquet").unlink()
    with pytest.raises(UserError, match=r"part\.parquet: was there when the run began, and is gone"):
        make_eval_batch(index, one_part(index))
