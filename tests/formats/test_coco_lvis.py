"""LVIS: which classes somebody looked for, image by image."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from multas_ray.data.row import Row
from multas_ray.data.writer import write_dataset
from multas_ray.errors import UserError
from multas_ray.formats import coco
from multas_ray.formats.source import Source
from tests.support.shared import shared_path

CATEGORIES = [
    {"id": key, "name": name, "synset": f"{name}.n.01", "frequency": "f"}
    for key, name in [(1, "apple"), (4, "bat"), (6, "cup"), (9, "drum"), (11, "eraser")]
]
OUTLINE = [[3, 4, 13, 4, 13, 14, 3, 14]]


def thing(category: int, **more: Any) -> dict[str, Any]:
    """An annotation of image 7."""
    box = {"id": category, "image_id": 7, "category_id": category, "bbox": [3, 4, 10, 10], "area": 100}
    return box | {"segmentation": OUTLINE} | more


def source(folder: Path, image: dict[str, Any], annotations: list[dict[str, Any]], **options: Any) -> Source:
    """The source of one image, of which a file says what `image` does."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "images" / "000000000007.jpg")
    listed = {"id": 7, "height": 30, "width": 40, "coco_url": "http://images.example.org/val2017/000000000007.jpg"}
    content = {"images": [listed | image], "annotations": annotations, "categories": CATEGORIES}
    (folder / "lvis.json").write_text(json.dumps(content))
    places = {"images": folder / "images", "annotations": folder / "lvis.json", "split": "val"}
    return coco.read(coco.Options(**places, **options))


def read(folder: Path, image: dict[str, Any], annotations: list[dict[str, Any]], **options: Any) -> Row:
    """The one row of `source`."""
    [split] = source(folder, image, annotations, **options).splits.values()
    [row] = map(split.read, split.items)
    assert isinstance(row, Row), row
    return row


def test_a_class_is_labelled_where_it_is_annotated_or_verified_absent_and_not_in_part(tmp_path: Path) -> None:
    image = {"neg_category_ids": [9, 11], "not_exhaustive_category_ids": [6]}
    row = read(tmp_path, image, [thing(1), thing(6)])
    assert row.task_mask == "both"
    # apple is annotated, drum and eraser are verified; cups are annotated in part, of bats nobody knows.
    assert row.unlabelled == {"det": (1, 2), "seg": (2, 3)}
    assert row.labels.tolist() == [0, 2]


def test_one_list_is_enough(tmp_path: Path) -> None:
    assert read(tmp_path, {"neg_category_ids": []}, [thing(4)]).unlabelled["det"] == (0, 2, 3, 4)
    assert read(tmp_path, {"not_exhaustive_category_ids": ["4"]}, [thing(4), thing(9)]).unlabelled["det"] == (
        0,
        1,
        2,
        4,
    )


def test_a_file_that_says_nothing_of_it_has_looked_for_all(tmp_path: Path) -> None:
    assert read(tmp_path, {}, [thing(4)]).unlabelled == {}


def test_the_numbers_are_those_of_the_chosen_classes(tmp_path: Path) -> None:
    image = {"neg_category_ids": [9], "not_exhaustive_category_ids": []}
    row = read(tmp_path, image, [thing(1)], classes=["eraser", "apple", "drum"])
    assert row.unlabelled == {"det": (0,), "seg": (1,)}
    assert read(tmp_path, image, [thing(1)], classes=["drum", "apple"]).unlabelled == {}


def test_only_annotated_tasks_have_such_classes(tmp_path: Path) -> None:
    image = {"neg_category_ids": [9, 1], "not_exhaustive_category_ids": []}
    assert read(tmp_path, image, [thing(4, segmentation=[])]).unlabelled == {"det": (2, 4)}
    assert read(tmp_path, image, [thing(4, bbox=[])]).unlabelled == {"seg": (3, 5)}
    assert read(tmp_path, image, [thing(4)], partial={"det": 1.0}).unlabelled == {"det": (2, 4)}
    assert read(tmp_path, image, [], empty="background").unlabelled == {"det": (1, 2, 4), "seg": (2, 3, 5)}
    assert read(tmp_path, image, [], empty="unlabelled").unlabelled == {}


def test_lists_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image 7: neg_category_ids 5 is no list of ids"):
        source(tmp_path, {"neg_category_ids": 5}, [thing(4)])


def test_images_lie_in_one_folder_or_in_those_of_their_splits(tmp_path: Path) -> None:
    assert read(tmp_path, {}, [thing(4)]).image_id == "000000000007"
    (tmp_path / "images" / "val2017").mkdir()
    found = source(tmp_path, {}, [thing(4)])
    (tmp_path / "images" / "000000000007.jpg").rename(tmp_path / "images" / "val2017" / "000000000007.jpg")
    [split] = found.splits.values()
    [row] = map(split.read, split.items)
    assert isinstance(row, Row)
    assert row.image_id == "000000000007"


def test_real_photographs(tmp_path: Path) -> None:
    """COCO's annotation as LVIS would have it: what is absent from the first images was looked for in them alone."""
    root = shared_path("data", "coco-mini")
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    content["images"] = content["images"][:8]
    everything = {category["id"] for category in content["categories"]}
    of_image: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for item in content["annotations"]:
        of_image.get(item["image_id"], set()).add(item["category_id"])
    for place, image in enumerate(content["images"]):
        image["coco_url"] = f"http://images.example.org/val2017/{image.pop('file_name')}"
        image["neg_category_ids"] = sorted(everything - of_image[image["id"]]) if place < 4 else []
        image["not_exhaustive_category_ids"] = []
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    found = coco.read(coco.Options(images=root, annotations=tmp_path / "lvis.json", split="val"))
    split = found.splits["val"]
    counts = []
    for item in split.items:
        row = split.read(item)
        assert isinstance(row, Row)
        missing = row.unlabelled.get("det", ())
        assert not set(row.labels.tolist()) & set(missing)
        assert row.unlabelled.get("seg", ()) == tuple(label + 1 for label in missing)
        counts.append(len(missing) + len(set(row.labels.tolist())) * bool(missing))
    assert sorted(counts) == [0] * 4 + [80] * 4
    assert write_dataset(tmp_path / "out", found).rows == {"val": {"both": 8}}
