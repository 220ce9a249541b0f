"""The YOLO reader: the layouts of Ultralytics and Roboflow, what label files and masks mean, and real photographs."""

import io
import json
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jobs import prepare as job
from multas_ray.data.pillow import encode
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, check_row
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.formats import coco, yolo
from multas_ray.formats.source import Source
from tests.support.rows import with_exif
from tests.support.shared import shared_path

NAMES = {0: "person", 1: "cat", 2: "dog"}
BOX = "1 0.5 0.5 0.25 0.2"
"""A cat in the middle: 15 12 25 18 of 40 x 30 pixels."""
SQUARE = "2 0.25 0.2 0.5 0.2 0.5 0.6 0.25 0.6"
"""A dog: 10 6 20 18."""
TRIANGLE = "1 0.25 0.2 0.75 0.2 0.75 0.8"


class Kit:
    """A folder of a data set in the making; its images are 40 pixels wide and 30 high."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root.parent / "out"

    def add(self, name: str, labels: str | bytes | None = None) -> Path:
        """Write an image, and its label file where `labels` are given."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (90, 120, 40)).save(file)
        if labels is not None:
            head, found, tail = f"/{name}".rpartition("/images/")
            label = self.root / f"{head}/labels/{tail}".lstrip("/") if found else file
            label = label.with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_bytes(labels if isinstance(labels, bytes) else labels.encode())
        return file

    def describe(self, file: str = "data.yaml", **keys: Any) -> Path:
        """Write the data.yaml."""
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"names": NAMES} | keys))
        return path

    def source(self, **options: Any) -> Source:
        """The source of data.yaml."""
        return yolo.read(yolo.Options(data=self.root / "data.yaml", **options))

    def rows(self, split: str = "train", **options: Any) -> list[Row | Reject]:
        """What is read of a split."""
        found = self.source(**options).splits[split]
        return [row for row in map(found.read, found.items) if row is not None]

    def prepare(self, *arguments: str, data: str = "data.yaml") -> dict[str, list[dict[str, Any]]]:
        """Run the job; the rows that it wrote of each split."""
        job.main(["yolo", "--data", str(self.root / data), "--out", str(self.out), *arguments])
        splits = read_info(str(self.out)).splits
        return {split: pq.read_table(self.out / split).to_pylist() for split in splits}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "set")


@pytest.fixture
def one(kit: Kit) -> Callable[..., Row | Reject]:
    """What is read of an image with these labels."""

    def read(labels: str | bytes, keys: dict[str, Any] | None = None, **options: Any) -> Row | Reject:
        kit.add("images/train/a.jpg", labels)
        kit.describe(train="images/train", **(keys or {}))
        [row] = kit.rows(**options)
        return row

    return read


def mask_of(record: dict[str, Any]) -> np.ndarray:
    """The mask of a row that was written."""
    return np.asarray(Image.open(io.BytesIO(record["mask"])))


# Layouts.


def test_the_layout_of_ultralytics(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    kit.add("images/train/a.jpg", BOX)
    kit.add("images/train/day/b.png", f"{BOX}\n0 0.1 0.1 0.2 0.2\n")
    kit.add("images/val/c.jpg", "")
    kit.describe(path=".", train="images/train", val="images/val", test="images/test", download="echo never")
    written = kit.prepare()
    assert [row["image_id"] for row in written["train"]] == ["images/train/a", "images/train/day/b"]
    np.testing.assert_allclose(written["train"][0]["boxes"], [[15, 12, 25, 18]], atol=1e-4)
    np.testing.assert_allclose(written["train"][1]["boxes"][1], [0, 0, 8, 6], atol=1e-4)
    assert [row["labels"] for row in written["train"]] == [[1], [1, 0]]
    assert [(row["has_det"], row["has_seg"], row["boxes"]) for row in written["val"]] == [(True, False, [])]
    info = read_info(str(kit.out))
    assert info.det_classes == list(NAMES.values())
    assert info.seg_classes == ["background", *NAMES.values()]
    printed = capsys.readouterr().out
    assert "test: 'images/test': no such file or folder" in printed
    assert "val: 1 images without an object, taken as background for detection" in printed


def test_the_layout_of_roboflow(kit: Kit) -> None:
    for split in ("train", "valid", "test"):
        kit.add(f"{split}/images/x_jpg.rf.0a1b.jpg", BOX)
    keys = {"train": "../train/images", "val": "../valid/images", "test": "../test/images", "nc": 3}
    kit.describe(names=list(NAMES.values()), roboflow={"license": "CC BY 4.0", "version": 1}, **keys)
    written = kit.prepare()
    assert {split: len(rows) for split, rows in written.items()} == {"train": 1, "val": 1, "test": 1}
    assert written["val"][0]["image_id"] == "valid/images/x_jpg.rf.0a1b"
    for key in ("valid", "validation"):
        kit.describe(train="train/images", **{key: "valid/images"})
        assert list(kit.source().splits) == ["train", "val"]


def test_labels_may_lie_beside_the_images(kit: Kit) -> None:
    kit.add("obj/a.jpg", BOX)
    kit.describe(train="obj")
    [row] = kit.rows()
    assert isinstance(row, Row)
    assert row.labels.tolist() == [1]


def test_the_last_folder_of_images_is_the_one(kit: Kit) -> None:
    kit.add("images/v2/images/a.jpg", BOX)
    assert (kit.root / "images/v2/labels/a.txt").is_file()
    kit.describe(train="images/v2/images")
    assert isinstance(kit.rows()[0], Row)


@pytest.mark.parametrize("how", ["none", "absolute", "beside", "above", "here"])
def test_where_the_folder_is(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    kit.add("images/train/a.jpg", BOX)
    monkeypatch.chdir(tmp_path)
    file, path = {
        "none": ("data.yaml", None),
        "absolute": ("../elsewhere/data.yaml", str(kit.root)),
        "beside": ("../data.yaml", "set"),
        "above": ("cfg/data.yaml", ".."),
        "here": ("../elsewhere/data.yaml", "set"),
    }[how]
    kit.describe(file, path=path, train="images/train")
    assert len(kit.prepare(data=file)["train"]) == 1


def test_a_folder_that_is_not_there_is_named(kit: Kit) -> None:
    kit.add("images/train/a.jpg", BOX)
    for keys, problem in [
        ({"path": "/content/datasets/x", "train": "images/train"}, "path: '/content/datasets/x' is no folder"),
        ({"train": "images/none"}, "train: 'images/none': no such file or folder in"),
        ({"train": "images/train", "val": "images/val"}, "val: 'images/val': no such file or folder"),
        ({"train": "labels"}, "train: no image in 'labels'"),
        ({"train": "../../other/images"}, "leads out of .*let `path` name one that holds all"),
        ({"train": "/usr/share"}, "leads out of"),
        ({}, "it has none of train, val and test"),
        ({"test": "images/test"}, "test: 'images/test': no such file or folder"),
    ]:  # fmt: skip
        kit.describe(**keys)
        with pytest.raises(UserError, match=problem):
            kit.source()
    kit.describe(train="images/train", test="images/test")
    with pytest.raises(UserError, match="no split 'val'; it has train, test"):
        kit.source(split=["val"])
    # A test split that is asked for has to be there.
    with pytest.raises(UserError, match="test: 'images/test': no such file"):
        kit.source(split=["train", "test"])


def test_splits_are_chosen(kit: Kit) -> None:
    kit.add("images/train/a.jpg", BOX)
    kit.add("images/val/b.jpg", BOX)
    kit.describe(train="images/train", val="images/val")
    assert list(kit.prepare("--split", "train")) == ["train"]
    assert list(kit.prepare("--split", "val")) == ["train", "val"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_people_write_them(kit: Kit, encoding: str) -> None:
    for name in ("a", "b", "c", "d e"):
        kit.add(f"images/train/{name}.jpg", BOX)
    kit.add("lists/images/f.jpg", BOX)
    lines = ["images/train/a.jpg", str(kit.root / "images/train/b.jpg"), "images\\train\\c.jpg", "",
             "  images/train/d e.jpg ", "./images/f.jpg", "images/train/a.jpg"]  # fmt: skip
    (kit.root / "lists" / "train.txt").write_bytes("\r\n".join(lines).encode(encoding))
    kit.describe(train="lists/train.txt")
    source = kit.source()
    names = [item.image_id for item in source.splits["train"].items]
    assert names == [*(f"images/train/{name}" for name in ("a", "b", "c", "d e")), "lists/images/f"]
    assert "1 images stand twice, such as 'images/train/a.jpg'" in source.remarks[0]
    assert all(isinstance(row, Row) for row in kit.rows())


def test_several_folders_and_lists_make_a_split(kit: Kit) -> None:
    for year in (2007, 2012):
        kit.add(f"images/train{year}/1.jpg", BOX)
    kit.add("images/more/2.jpg", BOX)
    (kit.root / "more.txt").write_text("./images/more/2.jpg\n")
    kit.describe(train=["images/train2007", "images/train2012", "more.txt"])
    ids = [row["image_id"] for row in kit.prepare()["train"]]
    assert ids == ["images/train2007/1", "images/train2012/1", "images/more/2"]


def test_one_missing_image_costs_one_row(kit: Kit) -> None:
    names = [kit.add(f"images/{number}.jpg", BOX) for number in range(3)]
    kit.add("../elsewhere/images/x.jpg", BOX)
    outside = kit.root.parent / "elsewhere" / "images" / "x.jpg"
    lines = [*map(str, names), "images/none.jpg", str(outside), "../elsewhere/images/x.jpg"]
    (kit.root / "train.txt").write_text("\n".join(lines))
    kit.describe(train="train.txt")
    assert len(kit.prepare("--max-rejected", "0.6")["train"]) == 3
    rejected = [json.loads(line) for line in (kit.out / "rejected.jsonl").read_text().splitlines()]
    assert [record["reason"] for record in rejected] == ["missing file", "outside its folder", "outside its folder"]


def test_links_lead_out_only_where_asked(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    kit.add("../big/a.jpg")
    kit.add("images/train/b.jpg", BOX)
    (kit.root / "images" / "train" / "a.jpg").symlink_to(kit.root.parent / "big" / "a.jpg")
    (kit.root / "images" / "train" / "sub").symlink_to(kit.root.parent / "big")
    (kit.root / "images" / "train" / "again").symlink_to(".")
    kit.describe(train="images/train")
    written = kit.prepare("--missing", "empty", "--max-rejected", "0.5")
    assert [row["image_id"] for row in written["train"]] == ["images/train/b"]
    assert "2 sub-folders that are links left out" in capsys.readouterr().out
    assert "--follow-links" in (kit.out / "rejected.jsonl").read_text()
    written = kit.prepare("--missing", "empty", "--follow-links", "--overwrite")
    ids = ["images/train/a", "images/train/b", "images/train/sub/a"]
    assert [row["image_id"] for row in written["train"]] == ids


def test_hidden_files_are_no_images(kit: Kit) -> None:
    kit.add("images/train/a.jpg", BOX)
    kit.add("images/train/._a.jpg")
    kit.add("images/train/.ipynb_checkpoints/a.jpg")
    kit.describe(train="images/train")
    assert [item.name for item in kit.source().splits["train"].items] == ["images/train/a.jpg"]


def test_names_that_no_table_can_hold_are_left_out(kit: Kit) -> None:
    """As of an archive that another system's encoding is in."""
    file = kit.add("images/train/a.jpg", BOX)
    Path(os.fsdecode(os.fsencode(file.parent) + b"/\xff.jpg")).write_bytes(file.read_bytes())
    kit.describe(train="images/train")
    assert [row["image_id"] for row in kit.prepare()["train"]] == ["images/train/a"]
    assert "1 images left out: their names are not UTF-8" in kit.source().remarks[0]


def test_listing_opens_no_image_and_any_process_reads_any_item(kit: Kit) -> None:
    kit.add("images/train/a.jpg", f"{SQUARE}\n{TRIANGLE}")
    kit.add("images/train/b.jpg", BOX).write_bytes(b"no image")
    kit.describe(train="images/train")
    split = kit.source().splits["train"]
    assert len(split.items) == 2
    read = pickle.loads(pickle.dumps(split.read))
    rows = [read(pickle.loads(pickle.dumps(item))) for item in split.items]
    assert pickle.dumps(rows[0]) == pickle.dumps(split.read(split.items[0]))
    assert isinstance(rows[1], Reject)
    assert rows[1].reason == "broken image"


# Labels.


def test_a_box_and_outlines(one: Callable[..., Row]) -> None:
    row = one(BOX)
    assert (row.task_mask, row.labels.tolist()) == ("det", [1])
    np.testing.assert_allclose(row.boxes, [[15, 12, 25, 18]], atol=1e-4)
    row = one(f"{SQUARE}\n{TRIANGLE}")
    assert (row.task_mask, row.labels.tolist()) == ("both", [2, 1])
    np.testing.assert_allclose(row.boxes, [[10, 6, 20, 18], [10, 6, 30, 24]], atol=1e-4)
    assert row.mask is not None
    assert set(np.unique(row.mask)) == {0, 2, 3}
    assert (row.mask[7:17, 11:19] == 3).all(), "the smaller of the two lies above"
    assert row.mask[10, 28] == 2
    assert row.mask[25, 5] == 0


def test_a_file_of_both_has_boxes_and_no_mask(one: Callable[..., Row]) -> None:
    """Where an object without an outline is, nobody knows: neither background nor its class may be taught there."""
    row = one(f"{SQUARE}\n{BOX}")
    assert (row.task_mask, row.labels.tolist()) == ("det", [2, 1])
    np.testing.assert_allclose(row.boxes, [[10, 6, 20, 18], [15, 12, 25, 18]], atol=1e-4)
    assert row.notes["images not annotated for segmentation: an object has no outline"] == 1


@pytest.mark.parametrize("others", [BOX, SQUARE])
@pytest.mark.parametrize("nothing", ["", "\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_image_without_objects(kit: Kit, others: str, nothing: str | bytes) -> None:
    """Of that which the data set annotates: boxes alone say nothing of pixels."""
    kit.add("images/train/a.jpg", others)
    kit.add("images/train/b.jpg", nothing)
    kit.describe(train="images/train")
    empty = kit.rows()[1]
    assert isinstance(empty, Row)
    assert empty.task_mask == ("det" if others == BOX else "both")
    assert not len(empty.boxes)
    assert empty.mask is None or not empty.mask.any()
    assert sum(count for note, count in empty.notes.items() if "without an object, taken as background" in note) == 1


@pytest.mark.parametrize(
    ("labels", "boxes"),
    [
        ("\ufeff" + BOX, 1),
        (BOX.replace(" ", "\t") + "\r\n\r\n", 1),
        ("1.0 5e-1 .5 0.25 0.2", 1),
        (f"{BOX}\n{BOX}\n1 0.50 0.5 0.25 0.2", 1),
        (f"{BOX}\n0 0.5 0.5 0.25 0.2", 2),
        ("1 0.5 0.5 1.01 1.005", 1),
        ("1 -0.005 0.5 0.2 0.2", 1),
    ],
)
def test_labels_as_tools_write_them(one: Callable[..., Row], labels: str, boxes: int) -> None:
    row = check_row(one(labels), {"det": 3, "seg": 4})
    assert len(row.boxes) == boxes
    assert (row.boxes >= 0).all()
    assert (row.boxes <= [40, 30, 40, 30]).all()


def test_what_is_dropped_or_clipped_is_counted(one: Callable[..., Row]) -> None:
    assert one(f"{BOX}\n{BOX}\n{BOX}").notes["objects dropped: another line says the same"] == 2
    outline = "2 0 0 1.008 0 1.008 0.5 0 0.5 -0.003 0.2"
    row = one(outline)
    assert row.notes["outlines clipped at the image's edge"] == 1
    assert row.boxes.tolist() == [[0, 0, 40, 15]]
    checked = check_row(one("1 0.5 0.5 1.01 0.5\n1 0.5 0.5 0 0.1"), {"det": 3, "seg": 4})
    assert checked.boxes[:, [0, 2]].tolist() == [[0, 40]]
    assert checked.notes["boxes clipped at the image's edge"] == 1
    rounded = check_row(one("1 0.833334 0.5 0.333333 0.5"), {"det": 3, "seg": 4})
    assert not rounded.notes["boxes clipped at the image's edge"]
    assert rounded.boxes.max() == 40
    assert checked.notes["boxes dropped: without area"] == 1


@pytest.mark.parametrize(
    ("labels", "reason", "detail"),
    [
        (f"{BOX}\n1 320 240 64 64", "coordinates beyond the image", "line 2: 320; coordinates are fractions"),
        ("1 0.5 0.5 1.02 0.2", "coordinates beyond the image", "line 1: 1.02"),
        ("1 -0.02 0.5 0.1 0.2", "coordinates beyond the image", "line 1: -0.02"),
        ("1 0.5 0.5 nan 0.2", "broken annotation", "line 1: 'nan' is no number"),
        ("1 0.5 0.5 inf 0.2", "broken annotation", "line 1: 'inf' is no number"),
        ("cat 0.5 0.5 0.1 0.2", "broken annotation", "line 1: 'cat' is no number"),
        ("1,0.5,0.5,0.1,0.2", "broken annotation", "is no number"),
        ("1 0.5 0.5 0.1", "broken annotation", "4 columns"),
        ("1 0.5 0.5 0.1 0.2 0.97", "broken annotation", "6 columns"),
        ("1 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "broken annotation", "8 columns"),
        ("3 0.5 0.5 0.1 0.2", "unknown class", "class 3 of 3"),
        ("-1 0.5 0.5 0.1 0.2", "unknown class", "class -1"),
        ("1.5 0.5 0.5 0.1 0.2", "unknown class", "class 1.5"),
        (b"\xe9\xff", "broken annotation", "not text in UTF-8"),
        (b"\x00" * 40, "broken annotation", "is no number"),
    ],
)
def test_bad_labels_reject_their_image(
    one: Callable[..., Row | Reject], labels: str | bytes, reason: str, detail: str
) -> None:
    row = one(labels)
    assert isinstance(row, Reject)
    assert (row.image_id, row.reason) == ("images/train/a", reason)
    assert detail in row.detail
    assert "labels/train/a.txt" in row.detail


@pytest.mark.parametrize("numbers", [2, 3])
def test_of_poses_the_boxes_are_taken(one: Callable[..., Row], numbers: int) -> None:
    """34 numbers of 17 points in the plane would else be an outline."""
    pose = f"{BOX} {' '.join(['0.5', '0.5', '2'][:numbers] * 17)}"
    if numbers == 2:
        assert one(pose).task_mask == "both"
    row = one(pose, {"kpt_shape": [17, numbers], "flip_idx": []})
    assert (row.task_mask, len(row.boxes)) == ("det", 1)
    assert row.notes["objects whose keypoints are left out"] == 1


def test_turned_boxes_are_spoken_of(one: Callable[..., Row]) -> None:
    note = "masks of outlines of four points; of turned boxes, take the boxes alone (--partial det=1)"
    assert one(SQUARE).notes[note] == 1
    assert one(f"{SQUARE}\n{TRIANGLE}").notes[note] == 0
    row = one(SQUARE, partial={"det": 1.0})
    assert (row.task_mask, row.mask) == ("det", None)


def test_a_small_outline_is_one_all_the_same(one: Callable[..., Row]) -> None:
    row = one(f"{SQUARE}\n1 0.9 0.9 0.901 0.9 0.901 0.901")
    assert row.task_mask == "both"
    assert row.mask is not None
    assert set(np.unique(row.mask)) <= {0, 2, 3}


@pytest.mark.parametrize("orientation", [3, 6])
def test_coordinates_are_of_the_image_that_viewers_show(kit: Kit, orientation: int) -> None:
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[6:18, 10:20] = 255
    filed = np.rot90(picture, {3: 2, 6: 1}[orientation])
    file = kit.add("images/train/a.png", SQUARE)
    file.write_bytes(with_exif(encode(Image.fromarray(np.ascontiguousarray(filed)), "PNG"), orientation))
    kit.describe(train="images/train")
    [row] = kit.prepare()["train"]
    assert (row["height"], row["width"]) == (30, 40)
    np.testing.assert_allclose(row["boxes"], [[10, 6, 20, 18]], atol=1e-4)
    stored = np.asarray(Image.open(io.BytesIO(row["image"])))[..., 0]
    assert ((mask_of(row) == 3) == (stored > 128)).mean() > 0.97


# Images without a label file.


@pytest.mark.parametrize(
    ("missing", "task_masks"), [("empty", ["both", "both"]), ("unlabelled", ["both", "none"]), ("skip", ["both"])]
)
def test_an_image_without_a_label_file(kit: Kit, missing: str, task_masks: list[str]) -> None:
    kit.add("images/train/a.jpg", TRIANGLE)
    kit.add("images/train/b.jpg")
    kit.describe(train="images/train")
    problem = r"1 of 2 images have no label, such as images/train/b.jpg \(labels/train/b.txt is not there\); --missing"
    with pytest.raises(UserError, match=problem):
        kit.source()
    rows = kit.rows(missing=missing)
    assert [row.task_mask for row in rows if isinstance(row, Row)] == task_masks
    if missing != "skip":
        assert isinstance(rows[1], Row)
        assert rows[1].notes[f"images without a label file, taken as {missing} (--missing)"] == 1


# Classes.


def test_some_classes_only(one: Callable[..., Row], kit: Kit) -> None:
    row = one(f"{SQUARE}\n0 0.5 0.8 0.9 0.8 0.9 0.9", classes=["cat", "dog"])
    assert row.labels.tolist() == [1]
    assert row.mask is not None
    assert set(np.unique(row.mask)) == {0, 2, 255}
    assert kit.source(classes=["dog"]).classes == {"det": ["dog"], "seg": ["background", "dog"]}
    with pytest.raises(UserError, match="no class 'cow'; allowed once each: person, cat, dog"):
        kit.source(classes=["cow"])
    with pytest.raises(UserError, match="a class twice"):
        kit.source(classes=["dog", "dog"])


def test_names_as_people_write_them(kit: Kit) -> None:
    kit.add("images/a.jpg", BOX)
    for keys, names in [
        ({"names": ["yes", "no", True]}, ["yes", "no", "True"]),
        ({"names": {"1": "b", "0": "a"}}, ["a", "b"]),
        ({"names": None, "nc": 2}, ["class_0", "class_1"]),
        ({"names": [1, 2.5]}, ["1", "2.5"]),
    ]:
        kit.describe(train="images", **keys)
        assert kit.source().classes["det"] == names


def test_background_is_no_class_of_objects(kit: Kit) -> None:
    kit.add("images/a.jpg", BOX)
    kit.add("images/b.jpg", BOX.replace("1", "0", 1))
    kit.describe(train="images", names=["Background", "cat"])
    source = kit.source()
    assert source.classes == {"det": ["cat"], "seg": ["background", "cat"]}
    assert "class 'background' left out" in source.remarks[0]
    cat, other = kit.rows()
    assert isinstance(cat, Row)
    assert cat.labels.tolist() == [0]
    # Its lines are of no object, and cost the image nothing.
    assert isinstance(other, Row)
    assert other.has_det
    assert other.labels.tolist() == []
    assert other.notes["objects dropped: of the class background"] == 1


def test_annotation_is_taken_from_training_images_alone(kit: Kit) -> None:
    for split in ("train", "val"):
        for number in range(4):
            kit.add(f"images/{split}/{number}.jpg", "1 0.1 0.1 0.5 0.1 0.5 0.5")
    kit.describe(train="images/train", val="images/val", names=["dog", "cat"])
    source = kit.source(partial={"det": 0.5, "seg": 0.5})
    masks = {name: sorted(split.read(item).task_mask for item in split.items) for name, split in source.splits.items()}
    assert masks == {"train": ["det", "det", "seg", "seg"], "val": ["both"] * 4}
    assert "val keeps all its annotation: --partial is for train" in source.remarks
    source = kit.source(partial={"det": 1.0})
    assert {split.read(item).task_mask for split in source.splits.values() for item in split.items} == {"det"}


def test_masks_hold_254_classes(kit: Kit) -> None:
    """Objects365 has 365 classes, of boxes; LVIS 1,203, with outlines."""
    names = [f"c{number}" for number in range(300)]
    kit.add("images/a.jpg", "299 0.5 0.5 0.2 0.2")
    kit.describe(train="images", names=names)
    [row] = kit.prepare()["train"]
    assert (row["labels"], row["has_seg"]) == ([299], False)
    assert read_info(str(kit.out)).seg_classes == []
    kit.add("images/a.jpg", "299 0.1 0.1 0.5 0.1 0.5 0.5")
    with pytest.raises(UserError, match=r"300 classes, and masks hold 254 at most; .*--partial det=1"):
        kit.source()
    assert len(kit.prepare("--partial", "det=1", "--overwrite")["train"][0]["boxes"]) == 1
    [chosen] = kit.prepare("--classes", "c7,c299", "--overwrite")["train"]
    assert set(np.unique(mask_of(chosen))) == {0, 2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("names: [a, b]\nnc: 3\ntrain: images", "nc is 3, and names has 2 classes"),
        ("train: images", "names: the classes are needed, or their number as nc"),
        ("names: []\ntrain: images", "names: .*at least 1"),
        ("names: coco.names\ntrain: images", "names: a list of names, or a mapping"),
        ("names: {0: a, 2: b}\ntrain: images", "names: the numbers of 2 classes are 0 to 1, each once"),
        ("names: [a, '']\ntrain: images", "names: class 1 has no name"),
        ("names: [a, [b]]\ntrain: images", "names: class 1 has no name"),
        ("names: [a, a]\ntrain: images", "names: 'a' stands there twice"),
        ("nc: 1000000000\ntrain: images", "names: the classes are needed"),
        ("names: [a]\ntrain: 7", "train.0: .*string"),
        ("names: [a]\ntrain: {a: b}", "train.0: .*string"),
        ("names: [a]\nval: images\nvalid: images", "several of val, valid and validation"),
        ("names: [a]\ntrain: images\nlabel_mapping: {0: road}", "label_mapping"),
        ("names: [a]\ntrain: images\npath: [a]", "path: .*string"),
        ("names: [a]\ntrain: \"im\\0ages\"", "no such file or folder"),
        ("names: [a]\ntrain: images\npath: \"\\0\"", "is no folder"),
        ("- a", "a mapping of sections is needed"),
        ("names: [", "not YAML"),
        ("names: !!python/object/apply:os.system [ls]", "not YAML"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_in_a_line(kit: Kit, text: str, problem: str) -> None:
    kit.add("images/a.jpg", BOX)
    (kit.root / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=problem) as caught:
        kit.source()
    assert "data.yaml" in str(caught.value)
    assert str(caught.value).isprintable()


# Masks.


def add_mask(kit: Kit, name: str, values: np.ndarray, folder: str = "masks") -> None:
    """Write a mask for an image of `images/`."""
    file = kit.root / folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(file)


def test_masks_of_class_numbers(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    kit.add("images/train/day/a.jpg")
    values = np.zeros((30, 40))
    values[:10], values[10:20, :5] = 2, 255
    add_mask(kit, "train/day/a.png", values)
    kit.describe(train="images/train", masks_dir="masks")
    [row] = kit.prepare()["train"]
    np.testing.assert_array_equal(mask_of(row), values)
    assert (row["has_det"], row["has_seg"], row["boxes"]) == (False, True, [])
    info = read_info(str(kit.out))
    assert (info.det_classes, info.seg_classes) == ([], list(NAMES.values()))
    [row] = kit.prepare("--classes", "dog,cat", "--overwrite")["train"]
    assert np.unique(mask_of(row)).tolist() == [0, 255]
    assert (mask_of(row)[:10] == 0).all()
    assert "label files" not in capsys.readouterr().out
    kit.add("images/train/day/a.jpg", BOX)
    kit.prepare("--overwrite")
    assert "masks are read, and label files are not" in capsys.readouterr().out


def test_raw_values_are_mapped(kit: Kit) -> None:
    kit.add("images/train/a.jpg")
    values = np.repeat([[7, 26, 0, 33]], 30, axis=0).repeat(10, axis=1)
    add_mask(kit, "train/a.png", values, "annotations")
    mapping = {-1: "ignore_label", 0: "ignore_label", 7: 0, 26: 1, 33: None}
    kit.describe(train="images/train", masks_dir="annotations", label_mapping=mapping)
    [row] = kit.rows()
    assert isinstance(row, Row)
    assert row.mask is not None
    assert row.mask[0, ::10].tolist() == [0, 1, 255, 255]
    kit.describe(train="images/train", masks_dir="annotations", label_mapping={7: 3})
    with pytest.raises(UserError, match="label_mapping: 3 is none of 3 classes"):
        kit.source()
    kit.describe(train="images/train", masks_dir="annotations", label_mapping={7: 0, 26: 1})
    [reject] = kit.rows()
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.detail.split(":")[0]) == ("unknown class", "mask values 33")


def test_of_a_single_class_the_masks_have_a_background(kit: Kit) -> None:
    kit.add("images/train/a.jpg")
    values = np.zeros((30, 40))
    values[:10], values[10:20] = 1, 255
    add_mask(kit, "train/a.png", values)
    kit.describe(train="images/train", masks_dir="masks", names=["crack"])
    assert kit.source().classes == {"det": [], "seg": ["background", "crack"]}
    [row] = kit.rows()
    assert isinstance(row, Row)
    np.testing.assert_array_equal(row.mask, values)


def test_images_without_a_mask(kit: Kit) -> None:
    kit.add("images/train/a.jpg")
    kit.add("images/train/b.jpg")
    add_mask(kit, "train/a.png", np.zeros((30, 40)))
    kit.describe(train="images/train", masks_dir="masks")
    with pytest.raises(UserError, match=r"1 of 2 images have no label, .*\(masks/train/b.png is not there\)"):
        kit.source()
    with pytest.raises(UserError, match="--missing empty: it is for label files"):
        kit.source(missing="empty")
    assert [row.task_mask for row in kit.rows(missing="unlabelled") if isinstance(row, Row)] == ["seg", "none"]
    assert [row.task_mask for row in kit.rows(missing="skip") if isinstance(row, Row)] == ["seg"]


def test_a_mask_is_never_the_image_itself_nor_outside(kit: Kit) -> None:
    kit.add("train/a.png")
    kit.describe(train="train", masks_dir="masks")
    with pytest.raises(UserError, match=r"masks_dir: train/a.png .* lies in no folder `images`"):
        kit.source()
    kit.add("images/a.jpg")
    Image.new("L", (40, 30)).save(kit.root.parent / "a.png")
    for masks_dir in ("..", str(kit.root.parent)):
        kit.describe(train="images", masks_dir=masks_dir)
        [reject] = kit.rows()
        assert isinstance(reject, Reject)
        assert reject.reason == "outside its folder"


# Real photographs.


def as_yolo(content: dict[str, Any], numbers: dict[int, int], kit: Kit, images: Path) -> list[str]:
    """Write images of COCO and their polygons in YOLO's layout; the ids of the images with whole outlines alone."""
    whole = []
    for image in content["images"]:
        objects = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        sides = np.array([image["width"], image["height"]])
        lines = []
        for item in objects:
            label = numbers[item["category_id"]]
            if not item["iscrowd"] and len(item["segmentation"]) == 1:
                numbers_of = np.reshape(item["segmentation"][0], (-1, 2)) / sides
            else:
                x, y, width, height = item["bbox"]
                numbers_of = np.array([[x + width / 2, y + height / 2], [width, height]]) / sides
            lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in numbers_of.ravel()))
        name = image["file_name"]
        (kit.root / "images" / name).symlink_to(images / name)
        (kit.root / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))
        if objects and all(not item["iscrowd"] and len(item["segmentation"]) == 1 for item in objects):
            whole.append(Path(name).stem)
    return whole


def test_real_photographs_are_read_as_cocos_reader_does(kit: Kit) -> None:
    root = shared_path("data", "coco-mini")
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    categories = sorted(content["categories"], key=lambda category: category["id"])
    numbers = {category["id"]: place for place, category in enumerate(categories)}
    for name in ("images", "labels"):
        (kit.root / name).mkdir(parents=True)
    whole = as_yolo(content, numbers, kit, root / "val2017")
    kit.describe(val="images", names=[category["name"] for category in categories])
    original = coco.read(coco.Options(images=root / "val2017", annotations=file, split="val")).splits["val"]
    expected = {item.image_id: item for item in original.items}
    split = kit.source(follow_links=True).splits["val"]
    assert len(split.items) == 90
    compared = 0
    for item in split.items:
        name = Path(item.image_id).name
        theirs = original.read(expected[name])
        ours = split.read(item)
        assert isinstance(ours, Row)
        assert isinstance(theirs, Row)
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.has_seg == (name in whole or not len(ours.labels))
        if name in whole:
            assert ours.mask is not None
            assert (ours.mask == theirs.mask).mean() > 0.995
            # A box of COCO has been drawn around the outline, to the hundredth of a pixel or coarser.
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1.5)
            compared += 1
    assert compared >= 20


def test_real_photographs_of_boxes_as_roboflow_exports_them(kit: Kit) -> None:
    root = shared_path("data", "voc2012-animals", "VOC2012")
    ids = (root / "ImageSets" / "Main" / "val.txt").read_text().split()[:12]
    from multas_ray.formats import voc

    original = voc.read(voc.Options(root=root, val="Main/val"))
    names = list(original.classes["det"])
    split = original.splits["val"]
    theirs = {item.image_id: split.read(item) for item in split.items if item.image_id in ids}
    for place, image_id in enumerate(ids):
        row = theirs[image_id]
        assert isinstance(row, Row)
        folder = kit.root / ("train" if place < 8 else "valid")
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{image_id}_jpg.rf.{place:032x}.jpg").write_bytes(row.image)
        lines = [yolo_line(label, box, row) for label, box in zip(row.labels, row.boxes, strict=True)]
        (folder / "labels" / f"{image_id}_jpg.rf.{place:032x}.txt").write_text("\n".join(lines))
    kit.describe(train="../train/images", val="../valid/images", names=names, nc=len(names))
    written = kit.prepare()
    assert {name: len(rows) for name, rows in written.items()} == {"train": 8, "val": 4}
    for record in [*written["train"], *written["val"]]:
        row = theirs[Path(record["image_id"]).name.split("_jpg")[0]]
        assert isinstance(row, Row)
        assert record["labels"] == row.labels.tolist()
        assert record["has_seg"] is False
        np.testing.assert_allclose(record["boxes"], row.boxes, atol=0.01)


def yolo_line(label: int, box: Sequence[float], row: Row) -> str:
    """A box in YOLO's form."""
    assert row.width is not None
    assert row.height is not None
    x1, y1, x2, y2 = box
    numbers = (x1 + x2) / 2 / row.width, (y1 + y2) / 2 / row.height, (x2 - x1) / row.width, (y2 - y1) / row.height
    return f"{label} " + " ".join(f"{number:.6f}" for number in numbers)
