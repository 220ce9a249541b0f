"""Hugging Face's Parquet: files as `datasets` writes them, its metadata included."""

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.prepare import main
from multas_ray.data.pillow import encode
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.formats import huggingface, huggingface_files
from multas_ray.formats.huggingface_files import split_of
from multas_ray.formats.source import Source
from tests.support.shared import shared_path

NAMES = ["Coverall", "Mask"]
IMAGE_FEATURE = {"decode": True, "id": None, "_type": "Image"}
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
BOXES = pa.list_(pa.list_(pa.float32(), 4))
OBJECTS = pa.struct({"id": pa.list_(pa.int64()), "bbox": BOXES, "category": pa.list_(pa.int64())})


def value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "id": None, "_type": "Value"}


def listed(kind: str, feature: Any, **more: Any) -> dict[str, Any]:
    return {"feature": feature, "_type": kind, **more}


def label(**more: Any) -> dict[str, Any]:
    return {"names": NAMES, **more, "_type": "ClassLabel"}


OLD = {"length": -1, "id": None}
"""What versions before 3 add to a `Sequence`."""
SEQUENCE_OF_DICT = listed(
    "Sequence",
    {
        "id": value("int64"),
        "bbox": listed("Sequence", value("float32"), length=4, id=None),
        "category": label(num_classes=2, names_file=None, id=None),
    },
    **OLD,
)
"""Versions 1 and 2. In Arrow it is a struct of lists."""
DICT_OF_LISTS = {
    "id": listed("List", {"dtype": "int64", "_type": "Value"}),
    "bbox": listed("List", listed("List", {"dtype": "float32", "_type": "Value"}, length=4)),
    "category": listed("List", label()),
}
"""Version 4, of the same data."""
LIST_OF_DICT = listed("List", {"bbox": listed("List", value("float64"), length=4), "category": label()})
"""Version 4: in Arrow it is a list of structs."""
LITERAL_LIST = [{"bbox": listed("Sequence", value("float64"), **OLD), "category": label(id=None)}]
"""Versions before 4."""


def metadata(**features: Any) -> dict[bytes, bytes]:
    """What `datasets` writes beside the columns."""
    info = {"info": {"features": {"image": IMAGE_FEATURE, **features}}, "fingerprint": "7d3c1d0a9c8e4f56"}
    return {b"huggingface": json.dumps(info).encode()}


def photo(tint: int = 100, width: int = 60, height: int = 40) -> bytes:
    return encode(Image.new("RGB", (width, height), (tint, 80, 30)), "JPEG")


def masked(values: np.ndarray | int, mode: str = "L") -> dict[str, Any]:
    """A mask of 60 x 40 pixels as a column of images has it."""
    pixels = np.broadcast_to(np.asarray(values, np.uint8), (40, 60))
    return {"bytes": encode(Image.fromarray(pixels).convert(mode), "PNG"), "path": None}


def row(objects: Any = None, **more: Any) -> dict[str, Any]:
    return {"image": {"bytes": photo(), "path": "1.jpg"}, "objects": objects} | more


def objects(boxes: Sequence[Sequence[float]], categories: Sequence[int], **more: Any) -> dict[str, Any]:
    return {"id": [*range(len(boxes))], "bbox": boxes, "category": categories} | more


ONE = objects([[5, 6, 20, 30]], [1])
"""It lies in the image as x y w h, and as x1 y1 x2 y2."""


def write(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    name: str = "data/train-00000-of-00001.parquet",
    features: Mapping[str, Any] | None = None,
    group: int = 100,
    **kinds: pa.DataType,
) -> Path:
    """A file of rows; types of their columns other than the usual ones are named, and so are other features."""
    usual = {"image": IMAGE, "objects": OBJECTS, "label": IMAGE, "image_id": pa.int64()} | kinds
    columns = list(dict.fromkeys(key for each in rows for key in each if key not in kinds or kinds[key] is not None))
    schema = pa.schema([(key, usual[key]) for key in columns if key in usual])
    about = metadata(**({"objects": SEQUENCE_OF_DICT} if features is None else features))
    table = pa.Table.from_pylist([dict(each) for each in rows], schema.with_metadata(about))
    return put(folder, name, table, group)


def put(folder: Path, name: str, table: pa.Table, group: int = 100) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name, row_group_size=group)
    return folder


def source_of(root: Path, **options: Any) -> Source:
    return huggingface.read(huggingface.Options(root=root, **options))


def rows_of(source: Source, split: str = "train") -> list[Row | Reject]:
    read = [source.splits[split].read(item) for item in source.splits[split].items]
    return [row for row in read if row is not None]


def row_of(source: Source, number: int = 0, split: str = "train") -> Row:
    found = rows_of(source, split)[number]
    assert isinstance(found, Row), found
    return found


@pytest.mark.parametrize(
    ("feature", "kind"),
    [
        (SEQUENCE_OF_DICT, OBJECTS),
        (DICT_OF_LISTS, OBJECTS),
        (LIST_OF_DICT, pa.list_(pa.struct({"bbox": pa.list_(pa.float64(), 4), "category": pa.int64()}))),
        (LITERAL_LIST, pa.large_list(pa.struct({"bbox": pa.list_(pa.float64()), "category": pa.int32()}))),
    ],
    ids=["Sequence of dict", "dict of List", "List of dict", "list of dict"],
)
def test_objects_in_each_way_that_datasets_writes_them(tmp_path: Path, feature: Any, kind: pa.DataType) -> None:
    things = [{"bbox": [5, 6, 20, 30], "category": 1}, {"bbox": [1.5, 2, 3, 4.25], "category": 0}]
    each: Any = (
        things
        if pa.types.is_struct(getattr(kind, "value_type", None) or kind) and not (pa.types.is_struct(kind))
        else objects([thing["bbox"] for thing in things], [thing["category"] for thing in things])
    )
    source = source_of(write(tmp_path, [row(each)], features={"objects": feature}, objects=kind))
    assert source.classes == {"det": tuple(NAMES), "seg": ()}
    assert source.remarks == [
        "images from the column 'image'; boxes from 'objects', as xywh (--boxes), classes by 'category'"
    ]
    found = row_of(source)
    assert found.task_mask == "det"
    assert found.boxes.tolist() == [[5, 6, 25, 36], [1.5, 2, 4.5, 6.25]]
    assert found.labels.tolist() == [1, 0]
    assert not found.difficult.any()
    assert found.image == photo()


def test_annotated_and_empty_is_not_the_same_as_not_annotated(tmp_path: Path) -> None:
    nothing = row(objects([], []))
    source = source_of(
        write(tmp_path, [row(ONE), nothing, row(None), row(objects([], []) | {"bbox": None, "category": None})])
    )
    assert [found.has_det for found in rows_of(source) if isinstance(found, Row)] == [True, True, False, False]
    assert row_of(source, 2).notes == {"images not annotated for detection: 'objects' is null": 1}


@pytest.mark.parametrize("names", [("categories", pa.int64()), ("category_id", pa.int16()), ("labels", pa.uint8())])
def test_other_names_and_types_of_the_categories(tmp_path: Path, names: tuple[str, pa.DataType]) -> None:
    name, number = names
    kind = pa.struct({"bbox": pa.list_(pa.list_(pa.int64())), name: pa.list_(number), "iscrowd": pa.list_(pa.bool_())})
    feature = listed("Sequence", {"bbox": value("int64"), name: label()})
    each = {"bbox": [[5, 6, 20, 30], [0, 0, 2, 2]], name: [1, 0], "iscrowd": [False, True]}
    found = row_of(source_of(write(tmp_path, [row(each)], features={"objects": feature}, objects=kind)))
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[5, 6, 25, 36], [0, 0, 2, 2]]
    assert found.difficult.tolist() == [False, True]


def test_boxes_of_corners_and_of_a_column_by_another_name(tmp_path: Path) -> None:
    things = {"image": {"bytes": photo(), "path": None}, "things": objects([[5, 6, 20, 30]], [1])}
    write(tmp_path, [things], features={"things": DICT_OF_LISTS}, things=OBJECTS)
    with pytest.raises(
        UserError, match=r"neither a column 'objects', nor .* --objects or --masks .* 'image', 'things'"
    ):
        source_of(tmp_path)
    found = row_of(source_of(tmp_path, objects="things", boxes="xyxy"))
    assert found.boxes.tolist() == [[5, 6, 20, 30]]


def test_boxes_that_are_certain_to_be_read_wrong_are_refused(tmp_path: Path) -> None:
    corners = [row(objects([[10, 10, 58, 38], [5, 5, 30, 20]], [0, 1])), row(objects([[30, 20, 59, 39]], [0]))]
    write(tmp_path / "corners", corners)
    with pytest.raises(
        UserError, match="of the first 3 boxes 2 do not fit their images as xywh, and all do as xyxy: --b"
    ):
        source_of(tmp_path / "corners")
    assert row_of(source_of(tmp_path / "corners", boxes="xyxy")).boxes[0].tolist() == [10, 10, 58, 38]
    write(tmp_path / "sizes", [row(objects([[30, 20, 10, 10], [5, 5, 4, 9]], [0, 1]))])
    with pytest.raises(
        UserError, match="2 do not fit their images as xyxy, and all do as xywh: --boxes xywh reads them"
    ):
        source_of(tmp_path / "sizes", boxes="xyxy")
    write(tmp_path / "fractions", [row(objects([[0.1, 0.2, 0.3, 0.25]], [0]))])
    with pytest.raises(UserError, match="of the first 1 boxes all are fractions of 0 to 1: pixels are needed"):
        source_of(tmp_path / "fractions")


def test_boxes_that_are_merely_drawn_badly_are_read(tmp_path: Path) -> None:
    """Half go beyond their image as x y w h, but one cannot be corners."""
    write(tmp_path, [row(objects([[10, 10, 58, 38], [40, 5, 10, 20]], [0, 1]))])
    assert row_of(source_of(tmp_path)).boxes.tolist() == [[10, 10, 68, 48], [40, 5, 50, 25]]


def test_classes_that_are_kept_and_those_that_nobody_names(tmp_path: Path) -> None:
    two = objects([[5, 6, 20, 30], [0, 0, 2, 2]], [0, 1])
    write(tmp_path / "named", [row(two)])
    source = source_of(tmp_path / "named", classes=("Mask",))
    assert source.classes["det"] == ("Mask",)
    assert row_of(source).boxes.tolist() == [[0, 0, 2, 2]]
    assert row_of(source).labels.tolist() == [0]
    with pytest.raises(UserError, match="--classes: no class 'Glove'; the files have 'Coverall', 'Mask'"):
        source_of(tmp_path / "named", classes=("Glove",))
    numbers = listed("Sequence", {"bbox": listed("Sequence", value("float32")), "category": value("int64")})
    write(tmp_path / "unnamed", [row(two)], features={"objects": numbers})
    with pytest.raises(
        UserError, match=r"column 'objects' are called: name them with --classes in the order of their n"
    ):
        source_of(tmp_path / "unnamed")
    source = source_of(tmp_path / "unnamed", classes=("a", "b"))
    assert source.classes["det"] == ("a", "b")
    assert row_of(source).labels.tolist() == [0, 1]
    [rejected] = rows_of(source_of(tmp_path / "unnamed", classes=("a",)))
    assert isinstance(rejected, Reject)
    assert (rejected.reason, rejected.detail) == ("unknown class", "category 1, 1 are known, from 0 on")


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("a, b c", "", ("a", "b c")),
        ("names.txt", "road\n\nside walk\r\n", ("road", "side walk")),
        ("names.json", '["a", "b"]', ("a", "b")),
        ("id2label.json", '{"1": "b", "0": "a"}', ("a", "b")),
    ],
)
def test_names_on_the_command_line(tmp_path: Path, text: str, content: str, names: tuple[str, ...]) -> None:
    root = write(tmp_path / "set", [{"image": {"bytes": photo(), "path": None}, "label": masked(1)}], features={})
    if content:
        (tmp_path / text).write_bytes(content.encode())
        text = str(tmp_path / text)
    main(["huggingface", "--root", str(root), "--classes", text, "--out", str(tmp_path / "out")])
    assert read_info(str(tmp_path / "out")).seg_classes == list(names)


@pytest.mark.parametrize("content", ['{"1": "a", "2": "b"}', "[]", '["a", 3]', "7", '{"0": ["a"]}'])
def test_a_file_that_names_no_classes(tmp_path: Path, content: str) -> None:
    root = write(tmp_path, [row(ONE)])
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(UserError, match=r"argument --classes: .*names\.json: names are needed, or in JSON names by"):
        main(["huggingface", "--root", str(root), "--classes", str(tmp_path / "names.json"), "--out", "x"])


def test_masks_and_what_their_zero_is(tmp_path: Path) -> None:
    values = np.zeros((40, 60), np.uint8)
    values[10:20], values[20:30], values[30:] = 1, 2, 255
    image = {"bytes": photo(), "path": None}
    rows = [
        {"image": image, "label": masked(values)},
        {"image": image, "label": masked(1, "P")},
        {"image": image, "label": None},
    ]
    write(tmp_path, rows, features={"label": IMAGE_FEATURE})
    with pytest.raises(
        UserError, match="values of the masks in the column 'label' are called: name them with --mask-cl"
    ):
        source_of(tmp_path)
    source = source_of(tmp_path, classes=("sky", "road", "car"))
    assert source.classes == {"det": (), "seg": ("sky", "road", "car")}
    found = row_of(source)
    assert found.task_mask == "seg"
    assert found.mask is not None
    assert np.array_equal(found.mask, values)
    assert row_of(source, 1).mask is not None
    assert row_of(source, 2).task_mask == "none"
    # ADE20K: 0 is other, and the classes begin at 1.
    source = source_of(tmp_path, classes=("road", "car"), reduce_zero_label=True)
    assert source.classes["seg"] == ("road", "car")
    found = row_of(source)
    assert found.mask is not None
    assert found.mask[[0, 10, 20, 30], 0].tolist() == [255, 0, 1, 255]
    rejected = rows_of(source_of(tmp_path, classes=("sky", "road")))[0]
    assert isinstance(rejected, Reject)
    assert rejected.detail.startswith("mask value 2, 2 are known, from 0 on: name all with --mask-classes")


def test_names_that_are_no_class_and_the_background(tmp_path: Path) -> None:
    values = np.zeros((40, 60), np.uint8)
    values[10:20], values[20:30], values[30:] = 1, 2, 3
    write(tmp_path, [{"image": {"bytes": photo(), "path": None}, "label": masked(values)}])
    source = source_of(tmp_path, classes=("Unlabeled", "road", "Background", "road"))
    assert source.classes["seg"] == ("background", "road")
    mask = row_of(source).mask
    assert mask is not None
    assert mask[[0, 10, 20, 30], 0].tolist() == [255, 1, 0, 1]


def test_objects_and_masks_have_classes_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, [row(ONE, label=masked(2))], features={"objects": DICT_OF_LISTS, "label": IMAGE_FEATURE})
    with pytest.raises(UserError, match=r"--mask-classes .*; --objects and the name of their column reads no masks"):
        source_of(tmp_path, classes=("Mask",))
    source = source_of(tmp_path, mask_classes=("background", "road", "sky"))
    assert source.classes == {"det": tuple(NAMES), "seg": ("background", "road", "sky")}
    assert row_of(source).task_mask == "both"
    assert row_of(source_of(tmp_path, objects="objects")).task_mask == "det"
    assert row_of(source_of(tmp_path, masks="label", classes=("a", "b", "c"))).task_mask == "seg"


def test_a_label_that_is_the_class_of_an_image_is_no_mask(tmp_path: Path) -> None:
    write(tmp_path, [row(ONE, label=3)], label=pa.int64())
    assert row_of(source_of(tmp_path)).task_mask == "det"
    with pytest.raises(
        UserError, match="--masks 'label': a column of masks is needed, each an image: a struct with its"
    ):
        source_of(tmp_path, masks="label")


def test_columns_that_cannot_be_told_apart(tmp_path: Path) -> None:
    image = {"bytes": photo(), "path": None}
    write(tmp_path, [{"image": image, "label": masked(0), "mask": masked(0)}], mask=IMAGE)
    with pytest.raises(UserError, match="'label', 'mask' may hold masks: say which with --masks"):
        source_of(tmp_path)
    assert row_of(source_of(tmp_path, masks="mask", classes=("a",))).task_mask == "seg"
    write(tmp_path / "other", [{"photo": image, "objects": ONE}], photo=IMAGE)
    with pytest.raises(
        UserError, match=r"--image 'image': a column of images is needed, .*; there are 'photo', 'objects'"
    ):
        source_of(tmp_path / "other")
    assert row_of(source_of(tmp_path / "other", image="photo")).image == photo()


def test_masks_that_are_no_class_ids(tmp_path: Path) -> None:
    image = {"bytes": photo(), "path": None}
    wide = np.full((40, 60), 1, np.uint16)
    pictures = [Image.new("RGB", (60, 40)), Image.fromarray(wide * 300), Image.fromarray(wide)]
    masks = [{"bytes": encode(picture, "PNG"), "path": None} for picture in pictures]
    write(tmp_path, [{"image": image, "label": mask} for mask in masks])
    colours, large, good = rows_of(source_of(tmp_path, classes=("a", "b")))
    assert isinstance(colours, Reject)
    assert "class ids are needed (grey, or with a palette), found mode RGB" in colours.detail
    assert isinstance(large, Reject)
    assert large.detail.startswith("mask value 300, 2 are known")
    assert isinstance(good, Row)
    assert good.mask is not None
    assert (good.mask == 1).all()


def test_masks_of_one_bit(tmp_path: Path) -> None:
    values = np.zeros((40, 60), np.uint8)
    values[:10] = 255
    write(tmp_path, [{"image": {"bytes": photo(), "path": None}, "label": masked(values, "1")}])
    mask = row_of(source_of(tmp_path, classes=("other", "person"))).mask
    assert mask is not None
    assert np.bincount(mask.ravel()).tolist() == [1800, 600]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001-1a2b3c4d5e6f7a8b.parquet", "val"),
        ("default/valid/0000.parquet", "val"),
        ("train_set/val/part-0.parquet", "val"),
        ("dev.parquet", "val"),
        ("my_data_test.parquet", "test"),
        ("data/trainA-00000-of-00001.parquet", "trainA"),
        ("data/minival-00003-of-00010.parquet", "minival"),
        ("trainer/evaluated.parquet", None),
        ("0000.parquet", None),
    ],
)
def test_splits_are_told_by_names(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_splits_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"):
        write(tmp_path / "set", [row(ONE), row(ONE)], name)
    write(tmp_path / "set", [row(ONE)], "data/validation-00000-of-00001.parquet")
    write(tmp_path / "set", [row(ONE)], "data/more.parquet")
    write(tmp_path / "set", [row(ONE)], ".cache/train.parquet")
    write(tmp_path / "set", [row(ONE)], "data/test-00000-of-00001.parquet", group=1)
    main(["huggingface", "--root", str(tmp_path / "set"), "--out", str(tmp_path / "out")])
    info = read_info(str(tmp_path / "out"))
    assert info.splits == {"train": {"det": 4}, "val": {"det": 1}, "test": {"det": 1}}
    assert list(info.splits) == ["train", "val", "test"]
    assert "1 files left out, whose names tell no split, such as 'data/more.parquet'" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "out" / "train")
    assert table["image_id"].to_pylist() == [
        *("data/train-00000-of-00002/0", "data/train-00000-of-00002/1"),
        *("data/train-00001-of-00002/0", "data/train-00001-of-00002/1"),
    ]


def test_files_without_a_split_are_train(tmp_path: Path) -> None:
    source = source_of(write(tmp_path, [row(ONE)], "0000.parquet"))
    assert list(source.splits) == ["train"]
    assert source.remarks[0] == "no file's name tells a split, such as '0000.parquet': all are taken for train"


def test_ids_are_the_files_own_or_places(tmp_path: Path) -> None:
    write(tmp_path / "own", [row(ONE, image_id=7), row(ONE, image_id=None)])
    assert [found.image_id for found in rows_of(source_of(tmp_path / "own"))] == ["7", "data/train-00000-of-00001/1"]
    write(tmp_path / "named", [row(ONE, image_id="cam/7")], image_id=pa.large_string())
    assert row_of(source_of(tmp_path / "named")).image_id == "cam/7"


def test_rows_are_read_by_row_groups_and_listed_by_footers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(objects([[number, 6, 20, 30]], [number % 2])) for number in range(7)]
    write(tmp_path, rows, group=3)
    write(tmp_path, rows[:2], "data/train-00001-of-00002.parquet", group=3)
    source = source_of(tmp_path)
    items = source.splits["train"].items
    assert len(items) == 9
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, *more: groups.append(group) or read(self, group, *more)
    )
    found = rows_of(source)
    assert [int(each.boxes[0, 0]) for each in found if isinstance(each, Row)] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    # The first one was read for a look at its boxes, and is still there.
    assert groups == [1, 2, 0]
    again = source.splits["train"].read(4)
    assert pickle.dumps(again) == pickle.dumps(found[4])


def test_any_process_may_read_any_item(tmp_path: Path) -> None:
    write(tmp_path, [row(ONE, label=masked(1))] * 3, features={"objects": LITERAL_LIST}, group=2)
    split = source_of(tmp_path, mask_classes=("a", "b")).splits["train"]
    read = pickle.loads(pickle.dumps(split.read))
    for item in reversed(split.items):
        assert pickle.dumps(read(item)) == pickle.dumps(split.read(item))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (row(objects([[1, 2, 3, 4]], [0, 1])), "lists of different lengths"),
        (row(objects([[1, 2, 3, 4]], [2])), "unknown class"),
        (row(objects([[1, 2, 3, 4]], [-1])), "unknown class"),
        (row(objects([[1, 2, 3, 4]], [0]) | {"category": [None]}), "broken annotation"),
        (row(objects([[1, 2, 3, 4]], [0]) | {"category": None}), "broken annotation"),
        (row(objects([[1, 2, 3, 4]], [0]) | {"bbox": [None]}), "broken annotation"),
        (row(ONE, image=None), "missing image"),
        (row(ONE, image={"bytes": None, "path": None}), "missing image"),
        (row(ONE, image={"bytes": None, "path": "gone.jpg"}), "missing file"),
        (row(ONE, image={"bytes": None, "path": "../secret.jpg"}), "outside its folder"),
        (row(ONE, image={"bytes": None, "path": "/etc/hostname"}), "outside its folder"),
    ],
)
def test_a_bad_row_costs_itself(tmp_path: Path, wrong: dict[str, Any], reason: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(photo())
    bad, good = rows_of(source_of(write(tmp_path / "set", [wrong, row(ONE)])))
    assert isinstance(bad, Reject)
    assert (bad.reason, bad.image_id) == (reason, "data/train-00000-of-00001/0")
    assert isinstance(good, Row)


def test_numbers_that_no_box_has_are_rejected_by_the_job(tmp_path: Path) -> None:
    rows = [row(objects([[float("nan"), 2, 3, 4]], [0])), row(objects([[1e38, 0, 1e38, 4]], [0])), row(ONE)]
    kind = pa.struct({"bbox": pa.list_(pa.list_(pa.float64())), "category": pa.list_(pa.int64())})
    write(tmp_path / "set", [*rows, row(objects([[1e300, 0, 5, 4]], [0]))], objects=kind)
    main(["huggingface", "--root", str(tmp_path / "set"), "--max-rejected", "0.9", "--out", str(tmp_path / "out")])
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"broken box"}
    assert len(lines) == 2
    # A number that is merely far outside costs its box.
    assert read_info(str(tmp_path / "out")).splits == {"train": {"det": 2}}


def test_an_image_may_be_a_file_below_the_folder(tmp_path: Path) -> None:
    write(tmp_path, [row(ONE, image={"bytes": None, "path": "images/1.jpg"})])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(photo(7))
    assert row_of(source_of(tmp_path)).image == photo(7)


def test_sizes_that_are_stated_are_compared(tmp_path: Path) -> None:
    kinds = {"width": pa.int64(), "height": pa.int64()}
    sizes = [{"width": 60, "height": 40}, {"width": 120, "height": 80}, {"width": 0, "height": None}]
    write(tmp_path / "set", [row(ONE, **size) for size in sizes], **kinds)
    main(["huggingface", "--root", str(tmp_path / "set"), "--max-rejected", "0.5", "--out", str(tmp_path / "out")])
    [line] = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert line["detail"] == "120x80, the image has 60x40"


def test_a_broken_row_group_costs_its_rows(tmp_path: Path) -> None:
    write(tmp_path, [row(ONE)] * 4, group=2)
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    place = pq.read_metadata(file).row_group(1).column(0).data_page_offset
    data = bytearray(file.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    file.write_bytes(data)
    found = rows_of(source_of(tmp_path))
    assert [type(each) for each in found] == [Row, Row, Reject, Reject]
    assert {each.reason for each in found[2:] if isinstance(each, Reject)} == {"broken file"}


def test_files_that_are_none_or_have_other_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Parquet file with rows here, such as data/train-00000-of-00001"):
        source_of(tmp_path)
    write(tmp_path / "a", [row(ONE)])
    (tmp_path / "a" / "data" / "val.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match=r"val\.parquet: not a readable Parquet file"):
        source_of(tmp_path / "a")
    write(tmp_path / "b", [row(ONE)])
    write(tmp_path / "b", [{"image": row()["image"]}], "data/val.parquet")
    with pytest.raises(UserError, match=r"val\.parquet: has no column 'objects' \(struct<bbox: list<item: list<"):
        source_of(tmp_path / "b")
    write(tmp_path / "c", [row(ONE)])
    other = json.loads(json.dumps(DICT_OF_LISTS).replace("Mask", "Glove"))
    write(tmp_path / "c", [row(ONE)], "data/val.parquet", {"objects": other})
    with pytest.raises(UserError, match=r"val\.parquet: a class is 'Glove' here, and 'Mask' in the files before it"):
        source_of(tmp_path / "c")
    strings = pa.struct({"bbox": BOXES, "category": pa.list_(pa.string())})
    write(tmp_path / "d", [row({"bbox": [[1, 2, 3, 4]], "category": ["cat"]})], objects=strings)
    with pytest.raises(UserError, match=r"--objects 'objects': a column of objects is needed, .* are whole numbers"):
        source_of(tmp_path / "d")


def test_a_row_group_that_is_too_large_to_be_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_files, "LARGEST_GROUP", 500)
    write(tmp_path, [row(ONE)])
    with pytest.raises(UserError, match=r"its row group 0 has .* GB, .*: write the file anew with row groups of 100"):
        source_of(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"info": 3}', '{"info": {"features": [{"objects": 1}]}}', "\udcff"])
def test_metadata_that_name_nothing(tmp_path: Path, text: str) -> None:
    table = pa.Table.from_pylist([row(ONE)], pa.schema({"image": IMAGE, "objects": OBJECTS}))
    about = {b"huggingface": text.encode(errors="surrogateescape")}
    put(tmp_path, "train.parquet", table.replace_schema_metadata(about))
    with pytest.raises(
        UserError, match=r"train\.parquet: its metadata of the key huggingface: not JSON|are called: name t"
    ):
        source_of(tmp_path)


def test_links_lead_out_where_that_is_allowed(tmp_path: Path) -> None:
    """As in a hub's cache, whose snapshots are links."""
    blob = write(tmp_path / "blobs", [row(ONE)], "0af3.parquet") / "0af3.parquet"
    snapshot = tmp_path / "snapshot" / "data" / "train-00000-of-00001.parquet"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(blob)
    with pytest.raises(UserError, match=r"outside its folder: .*; --follow-links reads such files"):
        source_of(tmp_path / "snapshot")
    assert row_of(source_of(tmp_path / "snapshot", follow_links=True)).has_det


SEEN: list[str] = []


class LoudScalar(pa.ExtensionScalar):
    def as_py(self, **options: Any) -> str:
        SEEN.append("looked at")
        return "1.jpg"


class Loud(pa.ExtensionType):
    """A type that would run code where a value of it is looked at, as Ray Data's pickled objects do."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "tests.loud")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Loud":
        return cls(storage)

    def __arrow_ext_scalar_class__(self) -> type:
        return LoudScalar


@pytest.fixture
def loud() -> Iterator[None]:
    SEEN.clear()
    pa.register_extension_type(Loud(pa.string()))
    yield
    pa.unregister_extension_type("tests.loud")


@pytest.mark.usefixtures("loud")
@pytest.mark.parametrize(
    "place", ["image", "bytes", "path", "objects", "category", "field of objects", "image_id", "more"]
)
@pytest.mark.parametrize("of_structs", [False, True])
def test_values_of_foreign_types_are_never_looked_at(tmp_path: Path, place: str, of_structs: bool) -> None:
    def hidden(array: pa.Array) -> pa.Array:
        return pa.ExtensionArray.from_storage(Loud(array.type), array)

    def lists(array: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays([0, len(array)], array)

    def struct(parts: dict[str, pa.Array]) -> pa.Array:
        return pa.StructArray.from_arrays([*parts.values()], [*parts])

    image = {"bytes": pa.array([photo()], pa.binary()), "path": pa.array(["1.jpg"])}
    if place in image:
        image[place] = hidden(image[place])
    things = {"bbox": pa.array([[5.0, 6, 20, 30]]), "category": pa.array([1]), "text": pa.array(["x"])}
    changed = {"category": "category", "field of objects": "text"}.get(place)
    if changed:
        things[changed] = hidden(things[changed])
    annotation = lists(struct(things)) if of_structs else struct({name: lists(each) for name, each in things.items()})
    columns = {"image": struct(image), "objects": annotation, "image_id": pa.array(["7"]), "more": pa.array(["x"])}
    if place in columns:
        columns[place] = hidden(columns[place])
    put(tmp_path, "train.parquet", pa.table(columns, metadata=metadata(objects=LITERAL_LIST)))
    assert "extension<tests.loud" in str(pq.read_schema(tmp_path / "train.parquet"))
    if place in ("image", "bytes", "objects", "category"):
        with pytest.raises(UserError, match=r"--(image|objects) '"):
            source_of(tmp_path)
    else:
        found = row_of(source_of(tmp_path))
        assert (found.labels.tolist(), found.image_id) == ([1], "train/0" if place == "image_id" else "7")
    assert not SEEN


def test_the_job_on_photographs(tmp_path: Path) -> None:
    """COCO's photographs as a data set of the hub has them, and VOC's with masks."""
    root = shared_path("data", "coco-mini")
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    numbers = {item["id"]: number for number, item in enumerate(content["categories"])}
    names = [item["name"] for item in content["categories"]]
    rows = []
    for image in content["images"][:12]:
        things = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        boxes, labels = [item["bbox"] for item in things], [numbers[item["category_id"]] for item in things]
        picture = {"bytes": (root / "val2017" / image["file_name"]).read_bytes(), "path": image["file_name"]}
        sizes = {"image_id": image["id"], "width": image["width"], "height": image["height"]}
        rows.append({"image": picture, **sizes, "objects": objects(boxes, labels)})
    feature = json.loads(json.dumps(SEQUENCE_OF_DICT).replace(json.dumps(NAMES), json.dumps(names)))
    kinds = {"width": pa.int64(), "height": pa.int64()}
    write(tmp_path / "coco", rows, features={"objects": feature}, group=5, **kinds)
    main(["huggingface", "--root", str(tmp_path / "coco"), "--out", str(tmp_path / "out")])
    info = read_info(str(tmp_path / "out"))
    assert info.splits == {"train": {"det": 12}}
    assert info.det_classes == names
    stored = {row["image_id"]: row for row in pq.read_table(tmp_path / "out" / "train").to_pylist()}
    for row in rows:
        found = stored[str(row["image_id"])]
        assert len(found["boxes"]) == len(row["objects"]["bbox"])
        for box, (x, y, width, height) in zip(found["boxes"], row["objects"]["bbox"], strict=True):
            assert np.allclose(box, [x, y, x + width, y + height], atol=1)
        assert found["labels"] == row["objects"]["category"]

    voc = shared_path("data", "voc2012-animals", "VOC2012")
    files = sorted((voc / "SegmentationClass").glob("*.png"))[:4]
    masks = [
        {
            "image": {"bytes": (voc / "JPEGImages" / f"{file.stem}.jpg").read_bytes(), "path": None},
            "label": {"bytes": file.read_bytes(), "path": file.name},
        }
        for file in files
    ]
    write(tmp_path / "voc", masks, "data/validation-00000-of-00001.parquet", {"label": IMAGE_FEATURE})
    (tmp_path / "names.txt").write_text("\n".join(["background", *(f"class {number}" for number in range(1, 21))]))
    command = ["huggingface", "--root", str(tmp_path / "voc"), "--classes", str(tmp_path / "names.txt")]
    main([*command, "--out", str(tmp_path / "seg")])
    assert read_info(str(tmp_path / "seg")).splits == {"val": {"seg": 4}}
    for file, row in zip(files, pq.read_table(tmp_path / "seg" / "val").to_pylist(), strict=True):
        with Image.open(file) as mask:
            assert np.array_equal(np.asarray(Image.open(pa.BufferReader(row["mask"]))), np.asarray(mask))


def test_several_configurations_are_not_one_data_set(tmp_path: Path) -> None:
    """The hub's own conversion has a folder a configuration, with the same images in several."""
    for config in ("full", "mini"):
        for split in ("train", "validation"):
            write(tmp_path, [row(ONE)], f"{config}/{split}/0000.parquet")
    with pytest.raises(UserError, match="files in the folders 'full', 'mini': are these several configurations"):
        source_of(tmp_path)
    splits = source_of(tmp_path / "full").splits
    assert {name: len(split.items) for name, split in splits.items()} == {"train": 1, "val": 1}


def test_background_is_no_class_of_objects(tmp_path: Path) -> None:
    two = objects([[5, 6, 20, 30], [0, 0, 2, 2]], [0, 1])
    numbers = listed("Sequence", {"bbox": listed("Sequence", value("float32")), "category": value("int64")})
    write(tmp_path, [row(two)], features={"objects": numbers})
    source = source_of(tmp_path, classes=("background", "cat"))
    assert source.classes["det"] == ("cat",)
    assert row_of(source).boxes.tolist() == [[0, 0, 2, 2]]
    assert row_of(source).labels.tolist() == [0]
    assert any("class 'background'" in line for line in source.remarks)
