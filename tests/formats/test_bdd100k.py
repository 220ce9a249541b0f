"""BDD100K: two image sets in one data set, in the layout of the published archives."""

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.prepare import main
from multas_ray.data.index import read_index
from multas_ray.data.pillow import encode
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.formats import bdd100k
from multas_ray.formats.source import Source
from tests.support.shared import shared_path

DET = ["pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "traffic light", "traffic sign"]
BOX = {"x1": 2.5, "y1": 3.25, "x2": 20.0, "y2": 15.5}


def label(category: str, **more: Any) -> dict[str, Any]:
    """An object, as det_20 has it."""
    attributes = {"occluded": False, "truncated": False, "trafficLightColor": "NA"}
    return {"id": "1", "attributes": attributes, "category": category, "box2d": BOX} | more


def picture(tint: int, side: int = 30) -> bytes:
    """A photograph of 40 pixels by `side`."""
    return encode(Image.new("RGB", (40, side), (tint, 90, 200)), "JPEG")


def mask(value: int, side: int = 30) -> bytes:
    """A mask of training ids, its upper rows ignored."""
    pixels = np.full((side, 40), value, np.uint8)
    pixels[:5] = 255
    return encode(Image.fromarray(pixels), "PNG")


def put(root: Path, name: str, data: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)


def add_boxes(root: Path, split: str, frames: dict[str, Any], file: str = "det_20/det_{split}.json") -> None:
    """The file of boxes of a split, and its images."""
    entries = [
        {"name": f"{name}.jpg", "attributes": {"weather": "clear"}, "timestamp": 10000, "labels": labels}
        for name, labels in frames.items()
    ]
    put(root, f"labels/{file.format(split=split)}", json.dumps(entries).encode())
    for name in frames:
        put(root, f"images/100k/{split}/{name}.jpg", picture(50))


def add_pixels(root: Path, split: str, masks: dict[str, int], tint: int = 50) -> None:
    """The masks of a split, and its images."""
    for name, value in masks.items():
        put(root, f"labels/sem_seg/masks/{split}/{name}.png", mask(value))
        put(root, f"images/10k/{split}/{name}.jpg", picture(tint))


def source_of(root: Path, **options: Any) -> Source:
    return bdd100k.read(bdd100k.Options(root=root, **options))


def rows(source: Source, split: str) -> dict[str, Row | Reject]:
    """The rows of a split by their ids."""
    read = [source.splits[split].read(item) for item in source.splits[split].items]
    assert None not in read
    return {row.image_id: row for row in read if row is not None}


def row_of(source: Source, image_id: str, split: str = "train") -> Row:
    row = rows(source, split)[image_id]
    assert isinstance(row, Row), row
    return row


def test_each_image_is_annotated_for_what_its_set_is(tmp_path: Path) -> None:
    add_boxes(tmp_path, "train", {"b-1": [label("car")], "d-1": [label("bus")]})
    add_boxes(tmp_path, "val", {"e-1": [label("train")]})
    add_pixels(tmp_path, "train", {"a-1": 0, "c-1": 18})
    add_pixels(tmp_path, "val", {"f-1": 13})
    source = source_of(tmp_path)
    assert source.classes["det"] == tuple(DET)
    assert (len(source.classes["seg"]), source.classes["seg"][0], source.classes["seg"][18]) == (19, "road", "bicycle")
    assert not source.remarks
    train = rows(source, "train")
    # Rows of both kinds lie side by side.
    assert list(train) == ["10k/a-1", "100k/b-1", "10k/c-1", "100k/d-1"]
    assert {name: row.task_mask for name, row in train.items() if isinstance(row, Row)} == {
        "10k/a-1": "seg",
        "100k/b-1": "det",
        "10k/c-1": "seg",
        "100k/d-1": "det",
    }
    boxes = row_of(source, "100k/b-1")
    assert boxes.boxes.tolist() == [[2.5, 3.25, 20, 15.5]]
    assert boxes.labels.tolist() == [DET.index("car")]
    pixels = row_of(source, "10k/c-1").mask
    assert pixels is not None
    assert Counter(pixels.ravel().tolist()) == {255: 200, 18: 1000}
    assert list(rows(source, "val")) == ["100k/e-1", "10k/f-1"]


def test_an_image_of_both_sets_is_one_row_with_both_annotations(tmp_path: Path) -> None:
    add_boxes(tmp_path, "train", {"a-1": [label("car")]})
    add_pixels(tmp_path, "train", {"a-1": 13})
    row = row_of(source_of(tmp_path), "100k/a-1")
    assert row.task_mask == "both"
    assert len(row.boxes) == 1
    assert row.mask is not None
    assert row.mask[10, 10] == 13


def test_images_of_one_name_and_other_content_are_two(tmp_path: Path) -> None:
    add_boxes(tmp_path, "train", {"a-1": [label("car")]})
    add_pixels(tmp_path, "train", {"a-1": 13})
    other = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    put(tmp_path, "images/10k/train/a-1.jpg", encode(Image.fromarray(other), "JPEG"))
    train = rows(source_of(tmp_path), "train")
    assert {name: row.task_mask for name, row in train.items() if isinstance(row, Row)} == {
        "100k/a-1": "det",
        "10k/a-1": "seg",
    }


def test_a_mask_is_never_put_on_an_image_that_only_has_the_size_of_its_own(tmp_path: Path) -> None:
    add_boxes(tmp_path, "train", {"a-1": [label("car")], "b-1": []})
    add_pixels(tmp_path, "train", {"a-1": 13})
    data = bytearray(picture(50))
    data[-3] ^= 1
    put(tmp_path, "images/10k/train/a-1.jpg", bytes(data))
    train = rows(source_of(tmp_path), "train")
    rejected = train["100k/a-1"]
    assert isinstance(rejected, Reject)
    assert rejected.reason == "two images of one name"
    assert isinstance(train["100k/b-1"], Row)


def test_what_either_set_validates_on_neither_trains_on(tmp_path: Path) -> None:
    add_boxes(tmp_path, "train", {"a-1": [], "leak-1": [label("car")], "leak-2": []})
    add_boxes(tmp_path, "val", {"leak-3": [label("car")], "v-1": []})
    add_pixels(tmp_path, "train", {"b-1": 1, "leak-3": 2})
    add_pixels(tmp_path, "val", {"leak-1": 3, "leak-2": 3})
    source = source_of(tmp_path)
    assert list(rows(source, "train")) == ["100k/a-1", "10k/b-1"]
    assert list(rows(source, "val")) == ["10k/leak-1", "10k/leak-2", "100k/leak-3", "100k/v-1"]
    assert source.remarks == ["train: 3 images left out, whose names are in val too (2 of 100k, 1 of 10k)"]


def test_categories_by_other_names_and_those_that_are_not_scored(tmp_path: Path) -> None:
    labels = [label(name) for name in ("person", "bike", "motor", "van", "other person", "trailer", "dog", "cyclist")]
    crowd = label("car", attributes={"crowd": True})
    add_boxes(tmp_path, "train", {"a-1": [*labels, crowd], "b-1": [label("dog"), label("rider", attributes=None)]})
    source = source_of(tmp_path)
    row = row_of(source, "100k/a-1")
    found = [DET[number] for number in row.labels]
    assert found == ["pedestrian", "bicycle", "motorcycle", "car", "pedestrian", "truck", "car"]
    assert row.difficult.tolist() == [False, False, False, False, True, True, True]
    assert row_of(source, "100k/b-1").labels.tolist() == [DET.index("rider")]
    assert source.remarks == [
        "train: 3 boxes left out, whose categories are no classes: 'dog' (2), 'cyclist' (1)",
        "train: boxes only, there is no labels/sem_seg/masks/train",
    ]


def test_an_image_without_labels_has_no_object(tmp_path: Path) -> None:
    add_boxes(tmp_path, "train", {"a-1": None, "b-1": [], "c-1": [label("car")]})
    source = source_of(tmp_path)
    for name in ("100k/a-1", "100k/b-1"):
        row = row_of(source, name)
        assert row.has_det
        assert not len(row.boxes)
        assert row.notes == {"images without labels, taken as without objects": 1}


def test_the_labels_of_2018_are_read_where_those_of_2020_are_not_there(tmp_path: Path) -> None:
    lane = {"category": "lane", "id": 2, "poly2d": [{"vertices": [[0, 0], [5, 5]], "types": "LL", "closed": False}]}
    older = "bdd100k_labels_images_{split}.json"
    add_boxes(tmp_path, "train", {"a-1": [lane, label("person", manualShape=True)]}, older)
    row = row_of(source_of(tmp_path), "100k/a-1")
    assert row.labels.tolist() == [0]
    assert row.notes == {"labels without a box left out: lanes, drivable areas": 1}
    add_boxes(tmp_path, "train", {"a-1": [label("rider")]})
    assert row_of(source_of(tmp_path), "100k/a-1").labels.tolist() == [1]


def test_frames_may_lie_beside_a_description(tmp_path: Path) -> None:
    add_boxes(tmp_path, "val", {"a-1": [label("car")]})
    file = tmp_path / "labels/det_20/det_val.json"
    file.write_text(json.dumps({"frames": json.loads(file.read_text()), "config": {"categories": []}}))
    assert list(rows(source_of(tmp_path), "val")) == ["100k/a-1"]


@pytest.mark.parametrize(
    ("labels", "reason", "detail"),
    [
        (7, "broken annotation", "labels are 7, a list is needed"),
        ([3], "broken annotation", "label 0 is 3, an object is needed"),
        ([label("car"), label("car", box2d=[1, 2, 3, 4])], "broken annotation", "box2d of label 1 is [1, 2, 3, 4]"),
        ([label("car", box2d={"x1": 1, "y1": 2, "x2": 3})], "broken annotation", "y2 of label 0 None is no number"),
        ([label("car", box2d=BOX | {"x2": float("nan")})], "broken annotation", "x2 of label 0 nan is no number"),
    ],
)
def test_a_broken_label_costs_its_own_image(tmp_path: Path, labels: Any, reason: str, detail: str) -> None:
    add_boxes(tmp_path, "train", {"a-1": labels, "b-1": [label("car")]})
    train = rows(source_of(tmp_path), "train")
    rejected = train["100k/a-1"]
    assert isinstance(rejected, Reject)
    assert rejected.reason == reason
    assert detail in rejected.detail
    assert isinstance(train["100k/b-1"], Row)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"images": []}, "not labels of Scalabel's: a list of frames is needed"),
        ([{"labels": []}], "frame 0 has no name"),
        ([{"name": "a.jpg"}, 3], "frame 1 has no name"),
        ([{"name": "a.jpg"}, {"name": "a"}], "the image 'a' stands twice"),
    ],
)
def test_a_file_that_is_none_of_boxes_is_named(tmp_path: Path, content: Any, problem: str) -> None:
    put(tmp_path, "labels/det_20/det_train.json", json.dumps(content).encode())
    with pytest.raises(UserError, match=rf"det_train\.json: {problem}"):
        source_of(tmp_path)


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "images/100k/train/a-1.jpg", picture(50))
    with pytest.raises(UserError, match=r"no labels of BDD100K here: labels/det_20/det_train\.json \(boxes\) or"):
        source_of(tmp_path)


def test_names_lead_nowhere_else(tmp_path: Path) -> None:
    add_boxes(tmp_path / "bdd", "train", {"a-1": [], "../../../../secret": []})
    put(tmp_path, "secret.jpg", picture(1))
    rejected = rows(source_of(tmp_path / "bdd"), "train")["100k/../../../../secret"]
    assert isinstance(rejected, Reject)
    assert rejected.reason == "outside its folder"
    labels = tmp_path / "linked" / "labels" / "det_20"
    labels.mkdir(parents=True)
    (labels / "det_train.json").symlink_to(tmp_path / "bdd/labels/det_20/det_train.json")
    with pytest.raises(UserError, match=r"outside its folder: .* --follow-links reads such files"):
        source_of(tmp_path / "linked")
    assert list(source_of(tmp_path / "linked", follow_links=True).splits) == ["train"]


def test_masks_of_colours_are_refused(tmp_path: Path) -> None:
    """`colormaps` lie beside `masks`; those are not class ids."""
    add_pixels(tmp_path, "train", {"a-1": 3, "b-1": 3})
    put(tmp_path, "labels/sem_seg/masks/train/a-1.png", encode(Image.new("RGB", (40, 30), (128, 64, 128)), "PNG"))
    rejected = rows(source_of(tmp_path), "train")["10k/a-1"]
    assert isinstance(rejected, Reject)
    assert "class ids are needed (a grey or palette PNG), found mode RGB" in rejected.detail


def test_the_job_on_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real photographs and masks in BDD100K's layout: some of each set, one of both, one that would leak, one of the
    known masks without an image."""
    voc = shared_path("data", "voc2012-animals", "VOC2012")
    stems = sorted(file.stem for file in (voc / "SegmentationClass").glob("*.png"))[:6]
    root = tmp_path / "bdd100k"
    sets = {"det train": [0, 1, 2], "seg train": [2, 3, 4], "det val": [4], "seg val": [5]}
    for name, numbers in sets.items():
        task, split = name.split()
        frames = {}
        for stem in (stems[number] for number in numbers):
            data = (voc / "JPEGImages" / f"{stem}.jpg").read_bytes()
            put(root, f"images/{'100k' if task == 'det' else '10k'}/{split}/{stem}.jpg", data)
            if task == "seg":
                pixels = np.asarray(Image.open(voc / "SegmentationClass" / f"{stem}.png"))
                values = np.where(pixels == 255, 255, pixels % 19).astype(np.uint8)
                put(root, f"labels/sem_seg/masks/{split}/{stem}.png", encode(Image.fromarray(values), "PNG"))
            frames[f"{stem}.jpg"] = [label("car", box2d={"x1": 10.5, "y1": 20, "x2": 100, "y2": 90.25})]
        if task == "det":
            entries = [{"name": name, "labels": labels} for name, labels in frames.items()]
            put(root, f"labels/det_20/det_{split}.json", json.dumps(entries).encode())
    put(root, "labels/sem_seg/masks/train/ff1e4d6d-f4d85cfd.png", mask(3))
    main(["bdd100k", "--root", str(root), "--max-rejected", "0.2", "--out", str(tmp_path / "out")])
    info = read_info(str(tmp_path / "out"))
    assert info.splits == {"train": {"det": 2, "seg": 1, "both": 1}, "val": {"det": 1, "seg": 1}}
    assert info.det_classes == DET
    assert "background" not in info.seg_classes
    printed = capsys.readouterr().out
    assert "train: 1 images left out, whose names are in val too (1 of 10k)" in printed
    assert "rejected rows: 1 missing file" in printed
    assert len(read_index(str(tmp_path / "out"), "train").rows(["both"])) == 1


def test_any_process_may_read_any_item(tmp_path: Path) -> None:
    add_boxes(tmp_path, "train", {"a-1": [label("car")]})
    add_pixels(tmp_path, "train", {"a-1": 13, "b-1": 2})
    split = source_of(tmp_path).splits["train"]
    read = pickle.loads(pickle.dumps(split.read))
    for item in split.items:
        assert pickle.dumps(read(pickle.loads(pickle.dumps(item)))) == pickle.dumps(split.read(item))
