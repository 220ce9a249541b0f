"""The COCO reader: categories, geometry, crowds, and the job on real instances."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jobs import prepare as job
from multas_ray.data.coco import Instances
from multas_ray.data.row import Reject, Row
from multas_ray.errors import UserError
from tests.shared import shared_path

CATEGORIES = [{"id": 90, "name": "brush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "sign"}]


def square(x: int, y: int, side: int) -> list[list[int]]:
    """A polygon."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def thing(category: int, x: int, y: int, side: int, **more: Any) -> dict[str, Any]:
    """An annotation of image 7 with a square region."""
    region = {"bbox": [x, y, side, side], "segmentation": square(x, y, side)}
    return {"image_id": 7, "category_id": category, "iscrowd": 0} | region | more


def run_lengths(x: int, y: int, side: int, compressed: bool) -> dict[str, Any]:
    """A square as COCO writes crowds: run lengths down the columns."""
    mask = np.zeros((30, 40), np.uint8)
    mask[y : y + side, x : x + side] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    if compressed:
        return {"size": [30, 40], "counts": rle["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return {"size": [30, 40], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def write(folder: Path, annotations: list[dict[str, Any]], **more: Any) -> Path:
    """An instances file on one image of 40 x 30 pixels, `pictures/007.jpg`."""
    (folder / "pictures").mkdir(exist_ok=True)
    Image.new("L", (40, 30), 120).save(folder / "pictures" / "007.jpg")
    image = {"id": 7, "file_name": "007.jpg", "height": 30, "width": 40}
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": CATEGORIES} | more))
    return file


def read(folder: Path, annotations: list[dict[str, Any]], classes: list[str] | None = None) -> Row | Reject:
    """The one row of an instances file."""
    [row] = Instances(write(folder, annotations), classes).rows(folder / "pictures")
    return row


def test_category_ids_with_gaps_become_labels(tmp_path: Path) -> None:
    assert Instances(write(tmp_path, [])).classes == ["person", "sign", "brush"]
    row = read(tmp_path, [thing(90, 0, 0, 5), thing(13, 10, 10, 6)])
    assert isinstance(row, Row)
    assert row.image_id == "007"
    assert row.labels.tolist() == [2, 1]
    assert row.boxes.tolist() == [[0, 0, 5, 5], [10, 10, 16, 16]]
    assert row.mask is not None
    assert (row.mask[:5, :5] == 3).all()
    assert (row.mask[10:16, 10:16] == 2).all()
    assert (row.mask > 0).sum() == 25 + 36


def test_smaller_areas_lie_over_larger_ones(tmp_path: Path) -> None:
    for annotations in ([thing(1, 2, 2, 20), thing(13, 8, 8, 4)], [thing(13, 8, 8, 4), thing(1, 2, 2, 20)]):
        row = read(tmp_path, annotations)
        assert isinstance(row, Row)
        assert row.mask is not None
        assert (row.mask == 2).sum() == 16
        assert (row.mask == 1).sum() == 400 - 16


@pytest.mark.parametrize("compressed", [True, False])
def test_crowds_are_difficult_and_ignored(tmp_path: Path, compressed: bool) -> None:
    crowd = thing(1, 20, 5, 15, iscrowd=1, segmentation=run_lengths(20, 5, 15, compressed))
    row = read(tmp_path, [crowd, thing(1, 0, 0, 5)])
    assert isinstance(row, Row)
    assert row.difficult.tolist() == [True, False]
    assert row.mask is not None
    assert (row.mask[5:20, 20:35] == 255).all()
    assert (row.mask == 255).sum() == 225
    assert (row.mask == 1).sum() == 25


def test_a_subset_of_classes(tmp_path: Path) -> None:
    row = read(tmp_path, [thing(1, 0, 0, 5), thing(90, 10, 10, 6)], ["brush", "sign"])
    assert isinstance(row, Row)
    assert row.labels.tolist() == [0]
    assert row.mask is not None
    assert (row.mask[:5, :5] == 255).all()
    assert (row.mask[10:16, 10:16] == 1).all()


def test_an_image_without_annotations_is_annotated_and_empty(tmp_path: Path) -> None:
    row = read(tmp_path, [])
    assert isinstance(row, Row)
    assert row.task_mask == "both"
    assert row.boxes.shape == (0, 4)
    assert row.mask is not None
    assert not row.mask.any()


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (thing(2, 0, 0, 5), "unknown class"),
        (thing(1, 0, 0, 5, segmentation=[[1, 2, 3]]), "broken annotation"),
        (thing(1, 0, 0, 5, segmentation={"size": [30, 40], "counts": [5]}), "broken annotation"),
        (thing(1, 0, 0, 5, segmentation={"size": [30, 41], "counts": "1"}), "mask of another size"),
        (thing(1, 0, 0, 5, bbox=[1, 2, 3]), "broken annotation"),
        (thing(1, 0, 0, 5, bbox=None), "broken annotation"),
    ],
)
def test_bad_annotations_are_rejected(tmp_path: Path, annotation: dict[str, Any], reason: str) -> None:
    row = read(tmp_path, [annotation])
    assert isinstance(row, Reject)
    assert (row.image_id, row.reason) == ("007", reason)


def test_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    missing = {"id": 8, "file_name": "008.jpg", "height": 30, "width": 40}
    file = write(tmp_path, [thing(1, 0, 0, 5, image_id=99)], images=[missing])
    rows = list(Instances(file).rows(tmp_path / "pictures"))
    assert [(row.image_id, row.reason) for row in rows if isinstance(row, Reject)] == [
        ("008", "missing image"),
        ("99", "annotation without an image"),
    ]


def test_grey_images_are_written_as_rgb(tmp_path: Path) -> None:
    file = write(tmp_path, [])
    command = ["coco", "--images", str(tmp_path / "pictures"), "--annotations", str(file), "--split", "train"]
    job.main([*command, "--out", str(tmp_path / "out")])
    [data] = pq.read_table(tmp_path / "out" / "train")["image"].to_pylist()
    (tmp_path / "image").write_bytes(data)
    with Image.open(tmp_path / "image") as image:
        assert (image.mode, image.format) == ("RGB", "JPEG")


def test_unusable_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    with pytest.raises(UserError, match="No such file"):
        Instances(file)
    for text, problem in [
        ("{", "not JSON"),
        ("[]", "no list images, annotations, categories"),
        ('{"images": []}', "no list"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=problem):
            Instances(file)
    with pytest.raises(UserError, match="not COCO instances"):
        Instances(write(tmp_path, [{"id": 1}]))
    with pytest.raises(UserError, match="no class 'cat'; allowed once each: brush, person, sign"):
        Instances(write(tmp_path, []), ["cat"])


def test_real_instances_with_a_partial_split(tmp_path: Path) -> None:
    root = shared_path("data", "coco-mini")
    out = tmp_path / "out"
    for split, more in [("train", ["--partial", "det=0.5,seg=0.25"]), ("val", [])]:
        images, annotations = root / f"{split}2017", root / "annotations" / f"instances_{split}2017.json"
        job.main(
            [
                "coco",
                "--images",
                str(images),
                "--annotations",
                str(annotations),
                "--split",
                split,
                "--out",
                str(out),
                *more,
            ]
        )
    info = json.loads((out / "dataset.json").read_text())
    assert info["splits"] == {"train": {"none": 40, "det": 80, "seg": 40}, "val": {"both": 90}}
    assert len(info["det_classes"]) == 80
    assert info["seg_classes"][:2] == ["background", "person"]
    for record in pq.read_table(out / "train").to_pylist():
        assert record["has_seg"] == (record["mask"] is not None)
        assert record["has_det"] or not record["boxes"]
    val = pq.read_table(out / "val").to_pylist()
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    assert sum(sum(record["difficult"]) for record in val) == sum(item["iscrowd"] for item in content["annotations"])
    assert sum(len(record["boxes"]) for record in val) == len(content["annotations"])
