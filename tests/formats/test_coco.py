"""The COCO reader: categories, geometry, crowds, and the job on real instances."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jobs import prepare as job
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.errors import UserError
from multas_ray.formats import coco
from multas_ray.formats.source import Source
from tests.support.shared import shared_path

FILE_KEYS = ("images", "annotations", "categories")
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


def write(folder: Path, annotations: list[dict[str, Any]], /, **more: Any) -> Path:
    """An instances file on one image of 40 x 30 pixels, `pictures/007.jpg`."""
    (folder / "pictures").mkdir(exist_ok=True)
    Image.new("L", (40, 30), 120).save(folder / "pictures" / "007.jpg")
    image = {"id": 7, "file_name": "007.jpg", "height": 30, "width": 40}
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": CATEGORIES} | more))
    return file


def source(folder: Path, annotations: list[dict[str, Any]], /, **more: Any) -> Source:
    """The source that the file of `write` is; options of the format go to it, other keys into the file."""
    options = {key: more.pop(key) for key in list(more) if key in coco.Options.model_fields and key not in FILE_KEYS}
    return read_file(write(folder, annotations, **more), folder / "pictures", **options)


def read_file(file: Path, pictures: Path, **options: Any) -> Source:
    """The source that an instances file is."""
    return coco.read(coco.Options(annotations=file, images=pictures, split="train", **options))


def rows(source: Source) -> list[Row | Reject | None]:
    """The rows of the one split of a source."""
    [split] = source.splits.values()
    return [split.read(item) for item in split.items]


def read(folder: Path, annotations: list[dict[str, Any]], **more: Any) -> Row | Reject:
    """The one row of an instances file."""
    [row] = rows(source(folder, annotations, **more))
    assert row is not None
    return row


def read_row(folder: Path, annotations: list[dict[str, Any]], **more: Any) -> Row:
    """The one row of an instances file, which is a good one."""
    row = read(folder, annotations, **more)
    assert isinstance(row, Row), row
    return row


def without(item: dict[str, Any], *keys: str) -> dict[str, Any]:
    """An annotation that lacks some keys."""
    return {key: value for key, value in item.items() if key not in keys}


def prepare(folder: Path, file: Path, *more: str) -> None:
    """Run the job on the pictures of `write`."""
    command = ["coco", "--images", str(folder / "pictures"), "--annotations", str(file), "--split", "train"]
    job.main([*command, "--out", str(folder / "out"), *more])


def test_category_ids_with_gaps_become_labels(tmp_path: Path) -> None:
    names = ["person", "sign", "brush"]
    assert source(tmp_path, []).classes == {"det": names, "seg": ["background", *names]}
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
    row = read(tmp_path, [thing(1, 0, 0, 5), thing(90, 10, 10, 6)], classes=["brush", "sign"])
    assert isinstance(row, Row)
    assert row.labels.tolist() == [0]
    assert row.mask is not None
    assert (row.mask[:5, :5] == 255).all()
    assert (row.mask[10:16, 10:16] == 1).all()


def test_what_is_annotated_is_read_from_the_file_image_by_image(tmp_path: Path) -> None:
    """Boxes only, masks only, and some of each: an image is annotated for what all of its objects have."""
    outline, box = without(thing(1, 0, 0, 5), "bbox"), without(thing(13, 8, 8, 4), "segmentation")
    both = thing(90, 20, 10, 6)
    for objects, mask in [([box], "det"), ([outline], "seg"), ([both], "both"), ([box, both], "both")]:
        row = read_row(tmp_path, objects)
        assert row.task_mask == mask
        assert len(row.boxes) == (len(objects) if row.has_det else 0)
    # Of one object nothing is known: its place may be taught as background by neither task.
    assert read_row(tmp_path, [both, without(box, "bbox")]).task_mask == "none"
    assert read_row(tmp_path, [outline, both]).task_mask == "seg"


@pytest.mark.parametrize("nothing", [[], [[]], None, [[0, 0, 5, 5]], ""])
def test_every_way_to_write_no_outline(tmp_path: Path, nothing: Any) -> None:
    row = read_row(tmp_path, [thing(1, 0, 0, 5, segmentation=nothing)])
    assert (row.task_mask, row.boxes.tolist()) == ("det", [[0, 0, 5, 5]])


def test_where_an_outline_is_missing_pixels_are_ignored(tmp_path: Path) -> None:
    row = read_row(tmp_path, [thing(1, 0, 0, 5), without(thing(13, 2.5, 2, 8), "segmentation")])
    assert row.mask is not None
    expected = np.zeros((30, 40), np.uint8)
    expected[2:10, 2:11] = 255
    expected[:5, :5] = 1
    np.testing.assert_array_equal(row.mask, expected)
    assert row.notes["objects without an outline: their boxes' pixels are ignored (255)"] == 1


def test_boxes_are_made_of_outlines_where_asked(tmp_path: Path) -> None:
    objects = [without(thing(1, 3, 4, 5), "bbox"), thing(13, 20, 10, 6, bbox=[19, 9, 9, 9])]
    row = read_row(tmp_path, objects, boxes_from_masks=True)
    assert row.task_mask == "both"
    assert row.boxes.tolist() == [[3, 4, 8, 9], [19, 9, 28, 18]]
    only = read_row(tmp_path, objects, boxes_from_masks=True, partial={"det": 1.0})
    assert (only.task_mask, only.boxes.tolist()) == ("det", row.boxes.tolist())


def test_a_broken_outline_is_nobodys_business_where_boxes_are_wanted(tmp_path: Path) -> None:
    row = read_row(tmp_path, [thing(1, 0, 0, 5, segmentation="broken")], partial={"det": 1.0})
    assert row.task_mask == "det"


@pytest.mark.parametrize(
    ("objects", "as_background"),
    [([thing(1, 0, 0, 5)], "both"), ([without(thing(1, 0, 0, 5), "segmentation")], "det"),
     ([without(thing(1, 0, 0, 5), "bbox")], "seg"), ([], "both")],
)  # fmt: skip
def test_an_image_that_is_merely_listed(tmp_path: Path, objects: list[dict[str, Any]], as_background: str) -> None:
    """Background, as COCO means it, for what the file annotates elsewhere; or what its user says."""
    images = [{"id": key, "file_name": name, "height": 30, "width": 40} for key, name in ((7, "007.jpg"), (8, "8.jpg"))]
    (tmp_path / "pictures").mkdir()
    Image.new("L", (40, 30), 120).save(tmp_path / "pictures" / "8.jpg")
    found = {}
    for empty in ("background", "unlabelled", "skip"):
        read = rows(source(tmp_path, objects, images=images, empty=empty))
        found[empty] = {row.image_id: row for row in read if isinstance(row, Row)}
    assert found["background"]["8"].task_mask == as_background
    assert not found["background"]["8"].boxes.size
    if found["background"]["8"].mask is not None:
        assert not found["background"]["8"].mask.any()
    assert found["unlabelled"]["8"].task_mask == "none"
    assert set(found["skip"]) == ({"007"} if objects else set())


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (thing(2, 0, 0, 5), "unknown class"),
        (thing(1, 0, 0, 5, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "broken annotation"),
        (thing(1, 0, 0, 5, segmentation={"size": [30, 40], "counts": [5]}), "broken annotation"),
        (thing(1, 0, 0, 5, segmentation={"size": [30, 41], "counts": "1"}), "mask of another size"),
        (thing(1, 0, 0, 5, bbox=[1, 2, 3]), "broken annotation"),
        (thing(1, 0, 0, 5, bbox=[1, 2, 3, 4, 0.5]), "broken annotation"),
        (thing(1, 0, 0, 5, bbox=[1, 2, float("nan"), 4]), "broken annotation"),
        (thing(1, 0, 0, 5, bbox=[1, 2, [3], 4]), "broken annotation"),
        (thing(1, 0, 0, 5, bbox=[10**400, 2, 3, 4]), "broken annotation"),
        (thing(1, 0, 0, 5, bbox={"x": 1}), "broken annotation"),
    ],
)
def test_bad_annotations_are_rejected_by_their_ids(tmp_path: Path, annotation: dict[str, Any], reason: str) -> None:
    row = read(tmp_path, [annotation | {"id": 4711}])
    assert isinstance(row, Reject)
    assert (row.image_id, row.reason) == ("007", reason)
    assert "4711" in row.detail or reason == "unknown class"


def test_numbers_may_be_strings(tmp_path: Path) -> None:
    row = read_row(tmp_path, [thing(1, 0, 0, 5, bbox=["1", "2.5", 3, 4], iscrowd="0")])
    assert (row.boxes.tolist(), row.difficult.tolist()) == ([[1, 2.5, 4, 6.5]], [False])
    assert read_row(tmp_path, [thing(1, 0, 0, 5, iscrowd="1"), thing(1, 9, 9, 5)]).difficult.tolist() == [True, False]


def test_sizes_are_the_images_where_the_file_has_none(tmp_path: Path) -> None:
    for size in ({}, {"height": -1, "width": -1}, {"height": 0, "width": 40}, {"height": None, "width": "x"}):
        row = read_row(tmp_path, [thing(1, 0, 0, 5)], images=[{"id": 7, "file_name": "007.jpg"} | size])
        assert row.mask is not None
        assert row.mask.shape == (30, 40)
    # A size that it has must be true, before anything is painted in it.
    wrong = {"id": 7, "file_name": "007.jpg", "height": 65_536, "width": 65_536}
    reject = read(tmp_path, [thing(1, 0, 0, 5)], images=[wrong])
    assert isinstance(reject, Reject)
    assert reject.reason == "annotation of another size"


@pytest.mark.parametrize(("frame", "size"), [("upright", (30, 40)), ("filed", (40, 30))])
def test_an_annotation_is_made_on_the_upright_image_or_on_its_file(
    tmp_path: Path, frame: str, size: tuple[int, int]
) -> None:
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[10:16, 20:26] = 255  # the object, as viewers show it
    file = write(tmp_path, [])
    filed = Image.fromarray(np.rot90(picture).copy())  # orientation 6: viewers turn it by a quarter, clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    filed.save(tmp_path / "pictures" / "007.jpg", exif=exif, quality=100, subsampling=0)
    spot = thing(1, 20, 10, 6) if frame == "upright" else thing(1, 10, 14, 6)
    images = [{"id": 7, "file_name": "007.jpg", "height": size[0], "width": size[1]}]
    content = json.loads(file.read_text()) | {"annotations": [spot], "images": images}
    file.write_text(json.dumps(content))
    prepare(tmp_path, file)
    [record] = pq.read_table(tmp_path / "out" / "train").to_pylist()
    assert (record["height"], record["width"], record["boxes"]) == (30, 40, [[20, 10, 26, 16]])
    stored = np.asarray(Image.open(io.BytesIO(record["image"])))[..., 0]
    assert stored[10:16, 20:26].min() > 200
    assert np.median(stored) < 20
    mask = np.asarray(Image.open(io.BytesIO(record["mask"])))
    assert (mask == 1).sum() == (mask[10:16, 20:26] == 1).sum() == 36


def test_ids_are_paths(tmp_path: Path) -> None:
    for name in ("cam_a", "cam_b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("L", (40, 30)).save(tmp_path / "pictures" / name / "1.jpg")
    images = [{"id": 1, "file_name": "cam_a/1.jpg"}, {"id": 2, "file_name": "cam_b\\1.jpg"}]
    both = rows(source(tmp_path, [], images=images))
    assert [row.image_id for row in both if isinstance(row, Row)] == ["cam_a/1", "cam_b/1"]


def test_a_name_may_be_in_a_url_only(tmp_path: Path) -> None:
    images = [{"id": 7, "coco_url": "http://images.example.org/train2017/007.jpg"}]
    assert read_row(tmp_path, [thing(1, 0, 0, 5)], images=images).image_id == "007"


def test_ids_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    for written in ("7", 7.0, 7):
        row = read_row(tmp_path, [thing(1, 0, 0, 5, image_id=written, category_id="13")])
        assert row.labels.tolist() == [1]
    identifiers = [{"id": "a-7", "file_name": "007.jpg"}]
    assert len(read_row(tmp_path, [thing(1, 0, 0, 5, image_id="a-7")], images=identifiers).boxes) == 1


def test_files_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    image = {"id": 7, "file_name": "007.jpg", "height": 30, "width": 40}
    things = [thing(1, 0, 0, 5)]
    for more, problem in [
        ({"images": [image, image | {"id": "7", "file_name": "8.jpg"}]}, "image id 7 stands twice .'007.jpg', '8.jpg'"),
        ({"categories": [*CATEGORIES, {"id": "1", "name": "cat"}]}, "category id 1 is 'person' and 'cat'"),
        ({"categories": [{"id": 1}]}, "category 1 has no name"),
        ({"categories": [*CATEGORIES, {"id": 2, "name": ""}]}, "category 2 has no name"),
        ({"categories": [{"id": 1, "name": "Background"}]}, "background is no class"),
        ({"images": [{"id": 7}]}, "image 7 has no id or no file_name"),
        ({"images": [{"file_name": "007.jpg"}]}, "no id or no file_name"),
        ({"images": ["007.jpg"]}, r"images\[0\] is '007.jpg', an object is needed"),
        ({"annotations": [[]]}, r"annotations\[0\] is \[\]"),
        ({"images": [image | {"id": "x"}]}, "image_id such as 7, the images' ids are such as 'x'"),
    ]:
        with pytest.raises(UserError, match=problem):
            source(tmp_path, things, **more)
    with pytest.raises(UserError, match="every object is a crowd"):
        source(tmp_path, [thing(1, 0, 0, 5, iscrowd=1)])


def test_boxes_of_two_corners_are_asked_about(tmp_path: Path) -> None:
    corners = [thing(1, 0, 0, 5, bbox=box) for box in ([20, 10, 38, 28], [10, 5, 35, 20], [1, 1, 5, 5])]
    with pytest.raises(UserError, match=r"2 of 3 boxes go beyond .* x1, y1, x2, y2: are they that"):
        source(tmp_path, corners)
    # One such box among others is one that somebody drew beyond the image.
    row = read_row(tmp_path, [thing(1, 0, 0, 5, bbox=[20, 10, 38, 28]), thing(1, 20, 20, 5)])
    assert row.boxes.tolist() == [[20, 10, 58, 38], [20, 20, 25, 25]]


def test_categories_that_are_no_classes_are_left_out_with_a_word(tmp_path: Path) -> None:
    root = {"id": 0, "name": "fish", "supercategory": "none"}
    cases = [
        [root, {"id": 1, "name": "fish", "supercategory": "fish"}],
        [{"id": 0, "name": "background"}, {"id": 1, "name": "fish"}],
    ]
    for categories in cases:
        found = source(tmp_path, [thing(1, 0, 0, 5)], categories=categories)
        assert found.classes["det"] == ["fish"]
        assert "left out" in found.remarks[0]
    # A super-category that is a class beside others is one.
    beside = [{"id": 0, "name": "fish"}, {"id": 1, "name": "carp", "supercategory": "fish"}, {"id": 2, "name": "boat"}]
    assert source(tmp_path, [thing(1, 0, 0, 5)], categories=beside).classes["det"] == ["fish", "carp", "boat"]


def test_masks_hold_254_classes(tmp_path: Path) -> None:
    categories = [{"id": number, "name": f"c{number}"} for number in range(300)]
    objects = [thing(299, 0, 0, 5)]
    with pytest.raises(UserError, match=r"300 classes, and masks hold 254.*--partial det=1"):
        source(tmp_path, objects, categories=categories)
    assert read_row(tmp_path, objects, categories=categories, partial={"det": 1.0}).labels.tolist() == [299]
    assert read_row(tmp_path, [without(objects[0], "segmentation")], categories=categories).labels.tolist() == [299]
    row = read_row(tmp_path, objects, categories=categories, classes=["c7", "c299"])
    assert row.mask is not None
    assert row.mask[0, 0] == 2


def test_nothing_is_dropped_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"id": key, "file_name": f"00{key}.jpg", "height": 30, "width": 40} for key in (7, 8)]
    objects = [
        thing(1, 0, 0, 5, image_id=99),
        thing(1, 38, 0, 5),
        thing(1, 50, 50, 5, segmentation=[]),
        thing(13, 9, 9, 5, segmentation=[[1, 2], *square(9, 9, 5)]),
    ]
    prepare(tmp_path, write(tmp_path, objects, images=images), "--max-rejected", "0.5")
    printed = capsys.readouterr().out
    for line in (
        "1 missing file",
        "1 annotations of 1 images that are not listed left out: image_id 99",
        "no object of 1 of 3 classes: 'brush'",
        "train: 1 boxes clipped",
        "train: 1 boxes dropped: outside their image",
        "train: 1 polygons dropped",
        "train: 1 objects without an outline",
    ):
        assert line in printed


def test_no_file_outside_the_folder_is_read(tmp_path: Path) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "secret.jpg")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "link.jpg").symlink_to("../secret.jpg")
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "/dev/zero"):
        row = read(tmp_path, [], images=[{"id": 7, "file_name": name, "height": 30, "width": 40}])
        assert isinstance(row, Reject)
        assert row.reason == "outside its folder"


def test_two_files_make_one_split(tmp_path: Path) -> None:
    """README's first sentence: this file has boxes, that one has masks."""
    boxes = write(tmp_path, [without(thing(1, 0, 0, 5), "segmentation")])
    prepare(tmp_path, boxes)
    Image.new("L", (40, 30), 50).save(tmp_path / "pictures" / "8.jpg")
    images = [{"id": 7, "file_name": "8.jpg", "height": 30, "width": 40}]
    masks = write(tmp_path, [without(thing(1, 0, 0, 5), "bbox")], images=images)
    with pytest.raises(UserError, match="already has train; --add adds rows to it"):
        prepare(tmp_path, masks)
    prepare(tmp_path, masks, "--add")
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["splits"] == {"train": {"det": 1, "seg": 1}}
    records = pq.read_table(tmp_path / "out" / "train").to_pylist()
    assert [(record["image_id"], record["has_det"], record["has_seg"]) for record in records] == [
        ("007", True, False),
        ("8", False, True),
    ]


def test_grey_images_are_written_as_rgb(tmp_path: Path) -> None:
    prepare(tmp_path, write(tmp_path, []))
    [data] = pq.read_table(tmp_path / "out" / "train")["image"].to_pylist()
    (tmp_path / "image").write_bytes(data)
    with Image.open(tmp_path / "image") as image:
        assert (image.mode, image.format) == ("RGB", "JPEG")


def test_unusable_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    with pytest.raises(UserError, match="No such file"):
        read_file(file, tmp_path)
    for data, problem in [
        (b"{", "not JSON"),
        (b"[]", "no list images"),
        (b'{"images": []}', "no list annotations"),
        (b"\xff\xfe\x00", "UTF-16"),
        (b"\xe9", "not text in UTF-8"),
        (b"[" * 100_000, "levels deep"),
        (b'{"images": ' + b"9" * 5000 + b"}", "not JSON"),
    ]:
        file.write_bytes(data)
        with pytest.raises(UserError, match=problem):
            read_file(file, tmp_path)
    with pytest.raises(UserError, match="no class 'cat'; allowed once each: brush, person, sign"):
        source(tmp_path, [], classes=["cat"])
    with pytest.raises(UserError, match="a class twice"):
        source(tmp_path, [], classes=["sign", "sign"])


@pytest.mark.long
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
