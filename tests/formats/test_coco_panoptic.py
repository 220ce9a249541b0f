"""COCO panoptic: PNGs of segment ids, and the file that says what the segments are."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import prepare as job
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.errors import UserError
from multas_ray.formats import coco
from multas_ray.formats.outlines import read_region
from multas_ray.formats.source import Source
from tests.support.shared import shared_path

CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 18, "name": "dog", "supercategory": "animal", "isthing": 1, "color": [0, 0, 1]},
    {"id": 125, "name": "grass", "supercategory": "plant", "isthing": 0, "color": [0, 1, 0]},
    {"id": 200, "name": "rug-merged", "supercategory": "floor", "isthing": 0, "color": [1, 0, 0]},
]
DOG, CROWD, GRASS = 3 + 256 * 7 + 65536 * 200, 65_537, 255
"""Ids of three segments, which need all three colours."""
SEGMENTS = [
    {"id": DOG, "category_id": 18, "iscrowd": 0, "bbox": [4, 5, 10, 8], "area": 80},
    {"id": CROWD, "category_id": 1, "iscrowd": 1, "bbox": [20, 0, 6, 6], "area": 36},
    {"id": GRASS, "category_id": 125, "iscrowd": 0, "bbox": [0, 20, 40, 10], "area": 400},
]


def segment_ids() -> np.ndarray:
    """Ids of the pixels of an image of 40 x 30: three segments, and void."""
    ids = np.zeros((30, 40), np.int64)
    ids[5:13, 4:14], ids[:6, 20:26], ids[20:] = DOG, CROWD, GRASS
    return ids


def save_ids(file: Path, ids: np.ndarray) -> None:
    """Write ids as panoptic annotation has them: red + 256 green + 65536 blue."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(file)


def source(folder: Path, segments: Any = SEGMENTS, /, annotations: Any = None, **more: Any) -> Source:
    """The source of one image; options of the format go to it, other keys into the file."""
    options = {key: more.pop(key) for key in list(more) if key in ("classes", "empty")}
    (folder / "val2017").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), (9, 99, 9)).save(folder / "val2017" / "000007.jpg")
    save_ids(folder / "panoptic_val2017" / "000007.png", segment_ids())
    content = {
        "images": [{"id": 7, "file_name": "000007.jpg", "height": 30, "width": 40}],
        "annotations": [{"image_id": 7, "file_name": "000007.png", "segments_info": segments}],
        "categories": CATEGORIES,
    }
    if annotations is not None:
        content["annotations"] = annotations
    file = folder / "panoptic_val2017.json"
    file.write_text(json.dumps(content | more))
    places = {"images": folder / "val2017", "annotations": file, "panoptic": folder / "panoptic_val2017"}
    return coco.read(coco.Options(**places, split="val", **options))


def read(source: Source) -> Row | Reject:
    """The one row of a source."""
    [split] = source.splits.values()
    [row] = [pickle.loads(pickle.dumps(split.read))(item) for item in split.items]
    return row


def read_row(source: Source) -> Row:
    """The one row of a source, which is a good one."""
    row = read(source)
    assert isinstance(row, Row), row
    return row


def test_things_are_boxes_and_all_segments_are_pixels(tmp_path: Path) -> None:
    found = source(tmp_path)
    assert found.classes == {"det": ["person", "dog"], "seg": ["person", "dog", "grass", "rug-merged"]}
    assert found.remarks == ["no object of 1 of 4 classes: 'rug-merged'"]
    row = read_row(found)
    assert (row.image_id, row.task_mask) == ("000007", "both")
    assert row.boxes.tolist() == [[4, 5, 14, 13], [20, 0, 26, 6]]
    assert (row.labels.tolist(), row.difficult.tolist()) == ([1, 0], [False, True])
    expected = np.full((30, 40), 255, np.uint8)
    expected[5:13, 4:14], expected[:6, 20:26], expected[20:] = 1, 0, 2
    assert row.mask is not None
    np.testing.assert_array_equal(row.mask, expected)


def test_what_is_written_has_no_background(tmp_path: Path) -> None:
    """Class 0 is one like any other: a split with no other pixels than its and void's is a good one."""
    person = [segment | {"category_id": 1} for segment in SEGMENTS]
    source(tmp_path, person)
    places = ["--images", str(tmp_path / "val2017"), "--annotations", str(tmp_path / "panoptic_val2017.json")]
    panoptic = ["--panoptic", str(tmp_path / "panoptic_val2017"), "--split", "val", "--out", str(tmp_path / "out")]
    job.main(["coco", *places, *panoptic])
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["seg_classes"][0] == "person"
    assert info["splits"] == {"val": {"both": 1}}
    [row] = pq.read_table(tmp_path / "out" / "val").to_pylist()
    assert (len(row["boxes"]), row["labels"]) == (3, [0, 0, 0])


def test_chosen_classes(tmp_path: Path) -> None:
    """Boxes of others are left out, their pixels ignored; where no thing is chosen, nothing is said of boxes."""
    found = source(tmp_path, classes=["grass", "dog"])
    assert found.classes == {"det": ["dog"], "seg": ["grass", "dog"]}
    row = read_row(found)
    assert (row.labels.tolist(), row.boxes.tolist()) == ([0], [[4, 5, 14, 13]])
    assert row.mask is not None
    assert np.bincount(row.mask.ravel()).nonzero()[0].tolist() == [0, 1, 255]
    assert (row.mask[20:] == 0).all()
    only = source(tmp_path, classes=["grass"])
    assert (only.classes["det"], read_row(only).task_mask) == ([], "seg")
    with pytest.raises(UserError, match="no class 'sky'; allowed once each: dog, grass"):
        source(tmp_path, classes=["sky"])


def test_a_class_that_is_called_background_is_the_background(tmp_path: Path) -> None:
    categories = [
        *CATEGORIES,
        {"id": 0, "name": "dog house", "isthing": 1},
        {"id": 201, "name": "Background", "isthing": 1},
    ]
    segments = [*SEGMENTS[:2], SEGMENTS[2] | {"category_id": 201}]
    found = source(tmp_path, segments, categories=categories)
    assert found.classes["seg"] == ["background", "dog house", "person", "dog", "grass", "rug-merged"]
    assert found.classes["det"] == ["dog house", "person", "dog"]
    row = read_row(found)
    assert row.mask is not None
    assert (row.mask[20:] == 0).all()
    assert row.labels.tolist() == [2, 1]


def test_a_listed_zero_is_a_segment(tmp_path: Path) -> None:
    row = read_row(source(tmp_path, [*SEGMENTS, {"id": 0, "category_id": 200}]))
    assert row.mask is not None
    assert row.mask[15, 0] == 3
    assert 255 not in row.mask


def test_a_thing_without_a_bbox_gets_the_box_of_its_pixels(tmp_path: Path) -> None:
    segments = [{key: value for key, value in segment.items() if key != "bbox"} for segment in SEGMENTS]
    row = read_row(source(tmp_path, segments))
    assert row.boxes.tolist() == [[4, 5, 14, 13], [20, 0, 26, 6]]
    assert row.notes["boxes made of segments' pixels: they have no bbox"] == 2


def test_an_image_without_annotation_is_unlabelled(tmp_path: Path) -> None:
    images = [{"id": key, "file_name": f"00000{key}.jpg", "height": 30, "width": 40} for key in (6, 7)]
    split = source(tmp_path, images=images).splits["val"]
    Image.new("RGB", (40, 30)).save(tmp_path / "val2017" / "000006.jpg")
    first, second = map(split.read, split.items)
    assert isinstance(first, Row)
    assert (first.task_mask, second.task_mask) == ("none", "both")
    assert "taken as unlabelled" in next(iter(first.notes))
    assert len(source(tmp_path, images=images, empty="skip").splits["val"].items) == 1


@pytest.mark.parametrize(
    ("segments", "reason", "detail"),
    [
        (SEGMENTS[:2], "broken annotation", "does not list: 255"),
        ([*SEGMENTS, SEGMENTS[0]], "broken annotation", "stands twice"),
        ([*SEGMENTS, {"id": 2**24, "category_id": 1}], "broken annotation", "16777216 is no number"),
        ([*SEGMENTS, {"id": "x", "category_id": 1}], "broken annotation", "'x' is no number"),
        ([*SEGMENTS, {"id": 5, "category_id": 2}], "unknown class", "2"),
        ([*SEGMENTS, {"id": 5, "category_id": 1, "bbox": [1, 2]}], "broken annotation", "segment 5: a bbox is"),
        ([*SEGMENTS, 5], "broken annotation", "no list of objects"),
        ({"id": 5}, "broken annotation", "no list of objects"),
    ],
)
def test_segments_that_mean_nothing_reject_their_image(tmp_path: Path, segments: Any, reason: str, detail: str) -> None:
    row = read(source(tmp_path, segments))
    assert isinstance(row, Reject)
    assert (row.image_id, row.reason) == ("000007", reason)
    assert detail in row.detail


def test_pngs_that_cannot_be_used_reject_their_image(tmp_path: Path) -> None:
    split = source(tmp_path).splits["val"]
    file = tmp_path / "panoptic_val2017" / "000007.png"
    for image, problem in [
        (Image.new("L", (40, 30)), "segment ids are colours of an RGB PNG, found mode L"),
        (Image.new("RGB", (40, 31)), "40x31, the image has 40x30"),
    ]:
        image.save(file)
        [row] = map(split.read, split.items)
        assert isinstance(row, Reject)
        assert row.detail == problem
    file.unlink()
    [row] = map(split.read, split.items)
    assert isinstance(row, Reject)
    assert row.reason == "missing file"
    annotation = {"image_id": 7, "segments_info": SEGMENTS}
    for more, problem in [
        ([annotation | {"file_name": "../val2017/000007.jpg"}], "outside its folder"),
        ([annotation], "broken annotation"),
        ([annotation | {"file_name": "000007.png"}] * 2, "broken annotation"),
    ]:
        row = read(source(tmp_path, annotations=more))
        assert isinstance(row, Reject)
        assert row.reason == problem


def test_files_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    box = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}
    with pytest.raises(UserError, match="not COCO panoptic, no annotation has segments_info"):
        source(tmp_path, annotations=[box])
    with pytest.raises(UserError, match="category 'cat' has isthing None: 1 is needed"):
        source(tmp_path, categories=[*CATEGORIES, {"id": 3, "name": "cat"}])
    with pytest.raises(UserError, match="300 classes, and masks hold 255 at most"):
        source(tmp_path, categories=[{"id": key, "name": f"c{key}", "isthing": 1} for key in range(300)])
    source(tmp_path)
    places = {"images": tmp_path / "val2017", "annotations": tmp_path / "panoptic_val2017.json", "split": "val"}
    with pytest.raises(UserError, match="COCO panoptic, no instances: name the folder of its PNGs with --panoptic"):
        coco.read(coco.Options(**places))
    with pytest.raises(UserError, match="--panoptic and --stuff"):
        coco.read(coco.Options(**places, panoptic=tmp_path, stuff=tmp_path))


def panoptic_of(instances: dict[str, Any], pngs: Path, chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Panoptic annotation of images that have instances: what none of them covers is land, but for a void edge."""
    annotations = []
    for image in chosen:
        height, width = image["height"], image["width"]
        columns = np.zeros(height * width, np.int64)
        land, infos = 4_000_000, []
        columns.reshape(width, height)[5:] = land
        infos.append({"id": land, "category_id": 999, "iscrowd": 0, "bbox": [5, 0, width - 5, height]})
        for item in instances["annotations"]:
            region = read_region(item["segmentation"], height, width, {}) if item["image_id"] == image["id"] else None
            if region and not item["iscrowd"]:
                inside = np.zeros(height * width, np.uint8)
                region.paint(inside, 1)
                infos.append(
                    {key: item[key] for key in ("category_id", "iscrowd", "bbox")} | {"id": len(infos) * 70_001}
                )
                columns[inside > 0] = infos[-1]["id"]
        name = Path(image["file_name"]).with_suffix(".png").name
        save_ids(pngs / name, columns.reshape(width, height).T)
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": infos})
    things = [category | {"isthing": 1} for category in instances["categories"]]
    land_category = {"id": 999, "name": "land", "isthing": 0}
    return {"images": chosen, "annotations": annotations, "categories": [*things, land_category]}


def test_real_photographs(tmp_path: Path) -> None:
    """Boxes are those of the instances; the pixels at an object's place are of its class, or of one that covers it."""
    root = shared_path("data", "coco-mini")
    instances = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    chosen = instances["images"][:12]
    content = panoptic_of(instances, tmp_path / "pngs", chosen)
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    places = ["--images", str(root / "val2017"), "--annotations", str(tmp_path / "panoptic.json")]
    job.main(["coco", *places, "--panoptic", str(tmp_path / "pngs"), "--split", "val", "--out", str(tmp_path / "out")])
    rows = pq.read_table(tmp_path / "out" / "val").to_pylist()
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (len(info["det_classes"]), len(info["seg_classes"]), info["seg_classes"][-1]) == (80, 81, "land")
    assert info["splits"] == {"val": {"both": 12}}
    ids = {image["id"] for image in chosen}
    wanted = [item for item in instances["annotations"] if item["image_id"] in ids and not item["iscrowd"]]
    assert sum(len(row["boxes"]) for row in rows) == len(wanted) > 50
    agreeing = total = 0
    for row in rows:
        (tmp_path / "mask.png").write_bytes(row["mask"])
        mask = np.asarray(Image.open(tmp_path / "mask.png"))
        assert (mask == 80).any()
        assert (mask[:, :5] == 255).any()
        for (x1, y1, x2, y2), label in zip(row["boxes"], row["labels"], strict=True):
            agreeing += bool((mask[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] == label).any())
            total += 1
    assert agreeing >= 0.95 * total
