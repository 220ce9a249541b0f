"""Roboflow's COCO export: a folder a split, each with its file beside the images."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs import prepare as job
from multas_ray.data.row import Row
from multas_ray.errors import UserError
from multas_ray.formats import coco
from multas_ray.formats.source import Source
from tests.support.shared import shared_path

CATEGORIES = [
    {"id": 0, "name": "animals-v2", "supercategory": "none"},
    {"id": 1, "name": "cat", "supercategory": "animals-v2"},
    {"id": 2, "name": "dog", "supercategory": "animals-v2"},
]


def export(folder: Path, name: str, images: int = 2, **more: Any) -> None:
    """A folder of an export: images with the names that Roboflow gives them, a box each."""
    (folder / name).mkdir(parents=True)
    names = [f"IMG_{number}_jpg.rf.0c{number}d9.jpg" for number in range(images)]
    for each in names:
        Image.new("RGB", (40, 30)).save(folder / name / each)
    boxes = [
        {"id": key, "image_id": key, "category_id": 1 + key % 2, "bbox": [3, 4, 10.5, 12], "area": 126,
         "segmentation": [], "iscrowd": 0}
        for key in range(images)
    ]  # fmt: skip
    listed = [{"id": key, "file_name": each, "height": 30, "width": 40} for key, each in enumerate(names)]
    content = {"info": {}, "licenses": [], "categories": CATEGORIES, "images": listed, "annotations": boxes} | more
    (folder / name / "_annotations.coco.json").write_text(json.dumps(content))


def read(folder: Path, **options: Any) -> Source:
    return coco.read(coco.Options(root=folder, **options))


def test_each_folder_is_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, images in [("train", 4), ("valid", 2), ("test", 1)]:
        export(tmp_path / "export", name, images)
    job.main(["coco", "--root", str(tmp_path / "export"), "--out", str(tmp_path / "out")])
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["splits"] == {"train": {"det": 4}, "val": {"det": 2}, "test": {"det": 1}}
    assert info["det_classes"] == ["cat", "dog"]
    printed = capsys.readouterr().out
    for split in ("train", "val", "test"):
        assert f"{split}: category 'animals-v2' (id 0) is no class, and no object is of it: left out" in printed
    assert "test: no object of 1 of 2 classes: 'dog'" in printed
    row = read(tmp_path / "export").splits["val"].read(read(tmp_path / "export").splits["val"].items[1])
    assert isinstance(row, Row)
    assert (row.image_id, row.labels.tolist()) == ("IMG_1_jpg.rf.0c1d9", [1])
    assert row.boxes.tolist() == [[3, 4, 13.5, 16]]


def test_only_training_images_lose_annotation(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        export(tmp_path, name, 4)
    splits = read(tmp_path, partial={"det": 0.5}).splits
    masks = {name: [split.read(item).task_mask for item in split.items] for name, split in splits.items()}
    assert (sorted(masks["train"]), masks["val"]) == (["det", "det", "none", "none"], ["det"] * 4)


def test_a_split_that_is_missing_or_empty_is_none(tmp_path: Path) -> None:
    export(tmp_path, "train")
    export(tmp_path, "test", 0)
    found = read(tmp_path)
    assert set(found.splits) == {"train"}
    assert found.remarks[-1].startswith("test: ")
    assert found.remarks[-1].endswith("lists no image: left out")


def test_splits_have_one_list_of_classes(tmp_path: Path) -> None:
    export(tmp_path, "train")
    export(tmp_path, "valid", categories=CATEGORIES[:2], annotations=[])
    with pytest.raises(UserError, match=r"valid/_annot.*train/_annot.*differ in 'dog'; name with --classes"):
        read(tmp_path)
    assert read(tmp_path, classes=["cat"]).classes["det"] == ["cat"]


def test_what_is_read_is_named_once(tmp_path: Path) -> None:
    export(tmp_path, "train")
    file = tmp_path / "train" / "_annotations.coco.json"
    for options, problem in [
        ({}, "coco: --images, --annotations, --split missing: give .* or --root"),
        ({"images": tmp_path, "annotations": file}, "coco: --split missing"),
        ({"root": tmp_path, "images": tmp_path}, "does not go with --images$"),
        ({"root": tmp_path, "split": "train", "annotations": file}, "does not go with --annotations, --split$"),
        ({"root": tmp_path, "stuff": tmp_path}, "does not go with --stuff$"),
        ({"root": tmp_path / "train"}, "none of train, valid, test is there with _annotations.coco.json"),
    ]:
        with pytest.raises(UserError, match=problem):
            coco.read(coco.Options(**options))


def test_no_file_outside_the_folder_is_read(tmp_path: Path) -> None:
    export(tmp_path / "export", "train")
    file = tmp_path / "export" / "train" / "_annotations.coco.json"
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match=r"outside its folder.*--follow-links"):
        read(tmp_path / "export")
    assert set(read(tmp_path / "export", follow_links=True).splits) == {"train"}


def test_real_photographs(tmp_path: Path) -> None:
    root = shared_path("data", "coco-mini")
    for split, name in [("train", "train"), ("val", "valid")]:
        content = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
        (tmp_path / name).mkdir()
        content["images"] = content["images"][:6]
        for image in content["images"]:
            (tmp_path / name / image["file_name"]).symlink_to(root / f"{split}2017" / image["file_name"])
        project = {"id": 0, "name": "project", "supercategory": "none"}
        below = [category | {"supercategory": "project"} for category in content["categories"]]
        (tmp_path / name / "_annotations.coco.json").write_text(json.dumps(content | {"categories": [project, *below]}))
    job.main(["coco", "--root", str(tmp_path), "--follow-links", "--out", str(tmp_path / "out")])
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["splits"] == {"train": {"both": 6}, "val": {"both": 6}}
    assert (len(info["det_classes"]), info["det_classes"][0]) == (80, "person")


def test_a_split_without_objects_is_annotated_as_the_others(tmp_path: Path) -> None:
    export(tmp_path, "train", 2)
    export(tmp_path, "valid", 2, annotations=[])
    source = read(tmp_path)
    rows = {name: [split.read(item) for item in split.items] for name, split in source.splits.items()}
    assert {name: {row.task_mask for row in each} for name, each in rows.items()} == {"train": {"det"}, "val": {"det"}}


def test_boxes_alone_are_wanted_of_all_splits(tmp_path: Path) -> None:
    outlines = [
        {"id": 0, "image_id": 0, "category_id": 1, "bbox": [3, 4, 10, 12], "area": 60, "iscrowd": 0,
         "segmentation": [[3, 4, 13, 4, 13, 16]]}
    ]  # fmt: skip
    many = [{"id": key, "name": f"c{key}", "supercategory": "x"} for key in range(1, 301)]
    for name in ("train", "valid"):
        export(tmp_path, name, 1, annotations=outlines, categories=many)
    source = read(tmp_path, partial={"det": 1.0})
    for split in source.splits.values():
        [row] = [split.read(item) for item in split.items]
        assert row.task_mask == "det"
