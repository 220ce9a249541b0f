"""Folders of images and masks: the layouts of public data sets, class files, and the masks that tools write."""

import io
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import prepare as job
from multas_ray.data.describe import count
from multas_ray.data.index import read_index
from multas_ray.data.read import read_row
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.formats import masks, voc
from multas_ray.formats.masks_classes import read_classes
from multas_ray.formats.masks_presets import PRESETS
from multas_ray.formats.masks_values import MaskClasses, read_values
from multas_ray.formats.source import Source
from multas_ray.formats.voc_classes import CLASSES
from tests.support.rows import with_exif
from tests.support.shared import shared_path

VALUES = np.zeros((30, 40), np.uint8)
VALUES[3:9, 4:12], VALUES[10:20, 10:20], VALUES[25:, :5] = 1, 2, 255
COLOURS = {0: (0, 0, 0), 1: (128, 64, 128), 2: (0, 0, 192), 255: (255, 255, 255)}
OF_IDS = MaskClasses(["sky", "road", "car"], {0: 0, 1: 1, 2: 2}, {}, "classes.txt")
OF_COLOURS = MaskClasses(
    ["sky", "road", "car"], {}, {colour: value for value, colour in COLOURS.items()}, "classes.txt"
)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG") -> bytes:
    """The bytes of an image file, of any mode."""
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, format)
    return stream.getvalue()


def in_colours(values: np.ndarray) -> np.ndarray:
    """A mask (H, W, 3) of COLOURS."""
    return np.array([COLOURS.get(value, (9, 9, 9)) for value in range(256)], np.uint8)[values]


class Kit:
    """Two folders in the making; images are 40 pixels wide and 30 high."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root.parent / "out"

    def add(self, image: str, mask: str | None = None, values: np.ndarray | Image.Image = VALUES) -> None:
        """Write an image and its mask."""
        files = {image: encoded(Image.new("RGB", (40, 30), (90, 120, 40)))}
        if mask is not None:
            files[mask] = encoded(values, "GIF" if mask.endswith(".gif") else "PNG")
        for name, data in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_bytes(data)

    def classes(self, *lines: str, name: str = "classes.txt") -> Path:
        """Write a class file."""
        self.root.mkdir(exist_ok=True)
        (self.root / name).write_text("\n".join(lines) + "\n")
        return self.root / name

    def source(self, images: str = "images", masks_: str = "masks", **options: Any) -> Source:
        """The source of two folders."""
        folders = {"images": self.root / images, "masks": self.root / masks_}
        return masks.read(masks.Options(**folders, **({"split": ["train"]} | options)))

    def rows(self, *folders: str, **options: Any) -> list[Row | Reject]:
        """What is read of them."""
        [split] = self.source(*folders, **options).splits.values()
        return [row for row in map(split.read, split.items) if row is not None]

    def prepare(self, images: str, masks_: str, *arguments: str, split: str = "train") -> list[dict[str, Any]]:
        """Run the job; the rows that it wrote."""
        folders = ["--images", str(self.root / images), "--masks", str(self.root / masks_), "--split", split]
        job.main(["masks", *folders, "--out", str(self.out), *arguments])
        return [row for name in split.split(",") for row in pq.read_table(self.out / name).to_pylist()]


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "set")


def mask_of(record: dict[str, Any]) -> np.ndarray:
    """The mask of a row that was written."""
    return np.asarray(Image.open(io.BytesIO(record["mask"])))


# Public data sets.


def test_cityscapes(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    label_ids = np.repeat(np.arange(34, dtype=np.uint8)[None], 30, axis=0)[:, :34]
    label_ids = np.concatenate([label_ids, np.full((30, 6), 255, np.uint8)], axis=1)
    for number in (19, 20):
        stem = f"aachen/aachen_0000{number}_000019"
        kit.add(f"leftImg8bit/train/{stem}_leftImg8bit.png", f"gtFine/train/{stem}_gtFine_labelIds.png", label_ids)
        kit.add(f"gtFine/train/{stem}_gtFine_color.png", f"gtFine/train/{stem}_gtFine_instanceIds.png", label_ids)
        train_ids = np.repeat([*range(19), *[255] * 21], 30).reshape(40, 30).T.astype(np.uint8)
        kit.add(f"gtFine/train/{stem}_gtFine_color.png", f"gtFine/train/{stem}_gtFine_labelTrainIds.png", train_ids)
    kit.add("leftImg8bit/train/aachen/thumbnail.png")
    folders = ["leftImg8bit/train", "gtFine/train"]
    rows = kit.prepare(*folders, "--preset", "cityscapes-labelids")
    assert [row["image_id"] for row in rows] == ["aachen/aachen_000019_000019", "aachen/aachen_000020_000019"]
    by_id = dict(zip(range(34), mask_of(rows[0])[0].tolist(), strict=False))
    scored = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
    assert by_id == dict.fromkeys(range(34), 255) | scored | {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    info = read_info(str(kit.out))
    assert (info.det_classes, len(info.seg_classes)) == ([], 19)
    assert (info.seg_classes[0], info.seg_classes[18], info.splits) == ("road", "bicycle", {"train": {"seg": 2}})
    assert "1 images left out: their names do not end in _leftImg8bit" in capsys.readouterr().out
    rows = kit.prepare(*folders, "--preset", "cityscapes-trainids", "--overwrite")
    assert mask_of(rows[0])[0].tolist() == train_ids[0].tolist()
    # One for the other is told, and not read as other classes.
    arguments = ["--preset", "cityscapes-trainids", "--mask-suffix", "_gtFine_labelIds", "--overwrite"]
    with pytest.raises(
        UserError, match=r"2 unknown class .*mask values 19, 20, .*--preset cityscapes-trainids has none"
    ):
        kit.prepare(*folders, *arguments)


def test_ade20k(kit: Kit) -> None:
    values = np.zeros((30, 40), np.uint8)
    values[:10], values[10:20] = 1, 150
    kit.add("images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png", values)
    [row] = kit.prepare("images/training", "annotations/training", "--preset", "ade20k")
    assert row["image_id"] == "ADE_train_00000001"
    assert mask_of(row)[::10, 0].tolist() == [0, 149, 255]
    classes = read_info(str(kit.out)).seg_classes
    assert (len(classes), classes[0], classes[12], classes[149]) == (150, "wall", "person", "flag")


def test_camvid(kit: Kit) -> None:
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[:10], picture[10:20] = (128, 64, 128), (0, 128, 192)
    kit.add(
        "701_StillsRaw_full/0001TP_006690.png", "LabeledApproved_full/0001TP_006690_L.png", Image.fromarray(picture)
    )
    [row] = kit.prepare("701_StillsRaw_full", "LabeledApproved_full", "--preset", "camvid")
    classes = read_info(str(kit.out)).seg_classes
    assert [classes[value] for value in mask_of(row)[[0, 10], 0]] == ["Road", "Bicyclist"]
    assert (mask_of(row)[20:] == 255).all()
    assert (len(classes), row["image_id"]) == (31, "0001TP_006690")


def test_the_tables_of_the_presets() -> None:
    for name, preset in PRESETS.items():
        classes = preset.classes
        assert len(set(classes.names)) == len(classes.names)
        indices = [*classes.values.values(), *classes.colours.values()]
        assert set(indices) - {255} == set(range(len(classes.names))), name
        assert bool(classes.values) != bool(classes.colours)
    assert set(masks.Options.model_fields["preset"].annotation.__args__[0].__args__) == set(PRESETS)  # type: ignore


def test_roboflows_masks_lie_beside_their_images(kit: Kit) -> None:
    for number in (1, 2):
        kit.add(f"train/x{number}_jpg.rf.0a.jpg", f"train/x{number}_jpg.rf.0a_mask.png", VALUES)
    kit.classes("Pixel Value, Class", "0, background", "1, cat", "2, dog", "255, void", name="_classes.csv")
    rows = kit.prepare("train", "train", "--classes", str(kit.root / "_classes.csv"), "--mask-suffix", "_mask.png")
    assert [row["image_id"] for row in rows] == ["x1_jpg.rf.0a", "x2_jpg.rf.0a"]
    np.testing.assert_array_equal(mask_of(rows[0]), VALUES)
    assert read_info(str(kit.out)).seg_classes == ["background", "cat", "dog"]


def test_carvanas_masks_are_gifs_of_another_folder(kit: Kit) -> None:
    binary = np.where(VALUES == 1, 255, 0).astype(np.uint8)
    kit.add("train/a_01.jpg", "train_masks/a_01_mask.gif", binary)
    # Their palette is black and white, and what counts is its indices.
    file = kit.classes("background: 0", "car: 1")
    [row] = kit.rows("train", "train_masks", classes=file, mask_suffix="_mask")
    assert isinstance(row, Row)
    np.testing.assert_array_equal(row.mask, VALUES == 1)


# Class files.


@pytest.mark.parametrize(
    ("lines", "names", "values"),
    [
        (["sky", "road", "car"], ["sky", "road", "car"], {0: 0, 1: 1, 2: 2}),
        (["sky: 10", "road:7", "void: 0"], ["sky", "road"], {10: 0, 7: 1, 0: 255}),
        (["7: road", "10\tsky"], ["road", "sky"], {7: 0, 10: 1}),
        (["7 road", "8 traffic light"], ["road", "traffic light"], {7: 0, 8: 1}),
        (["Pixel Value, Class", " 0, background", " 1, class 1"], ["background", "class 1"], {0: 0, 1: 1}),
        (["# mine", "", "car: 1", "truck: 2", "car: 3"], ["car", "truck"], {1: 0, 2: 1, 3: 0}),
        (["cat: 1", "Background: 0"], ["background", "cat"], {1: 1, 0: 0}),
        (["id,name", "0,Unlabeled", "255,edge"], ["edge"], {0: 255, 255: 0}),
        (["\ufeffsky", "road\r"], ["sky", "road"], {0: 0, 1: 1}),
    ],
)
def test_files_of_classes_and_values(kit: Kit, lines: list[str], names: list[str], values: dict[int, int]) -> None:
    classes = read_classes(kit.classes(*lines))
    assert (list(classes.names), classes.values, classes.colours) == (names, values, {})


@pytest.mark.parametrize(
    "lines",
    [
        ["road: 128,64,128", "Animal: 64,128,64", "Void: 0,0,0"],
        ["# label:color_rgb:parts:actions", "road:128,64,128::", "Animal:64,128,64::", "void:0,0,0::"],
        ["name,r,g,b", "road,128,64,128", "Animal,64,128,64", "Void,0,0,0"],
        ["128 64 128\troad", "64 128 64\tAnimal", "0 0 0\t\tVoid"],
        ["128 64 128 road", "Animal 64 128 64", "Void 0 0 0"],
    ],
)
def test_files_of_classes_and_colours(kit: Kit, lines: list[str]) -> None:
    """Own ones, and those of CVAT, Kaggle and CamVid."""
    classes = read_classes(kit.classes(*lines))
    assert list(classes.names) == ["road", "Animal"]
    assert classes.colours == {(128, 64, 128): 0, (64, 128, 64): 1, (0, 0, 0): 255}
    assert not classes.values


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["road: 1", "car: 1"], "1 stands there twice"),
        (["road: 1", "car"], "1 stands there twice"),
        (["road: 1,2,3", "car: 1, 2, 3"], r"\(1, 2, 3\) stands there twice"),
        (["road: 1", "car: 1,2,3"], "some classes have a value and others a colour"),
        (["road: 256"], "'road: 256': write a class as"),
        (["road: 1000"], "write a class as"),
        (["road: 1,2"], "write a class as"),
        (["road: -1"], "write a class as"),
        (["road, street: 1"], "write a class as"),
        (["7"], "write a class as"),
        (["7: 8"], "write a class as"),
        ([""], "0 classes; masks hold 1 to 255"),
        (["void: 0"], "0 classes"),
        ([f"c{number}:{number // 250},{number % 250},0" for number in range(300)], "300 classes"),
    ],
)
def test_a_wrong_class_file_is_told_in_a_line(kit: Kit, lines: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        read_classes(kit.classes(*lines))
    assert "classes.txt" in str(caught.value)


# Masks.


def mask_in(mode: str) -> bytes:
    """VALUES in one of the forms in which tools write them."""
    image = Image.fromarray(VALUES)
    if mode == "P":
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    elif mode == "two levels":
        image = Image.fromarray(VALUES % 255 > 0)
    elif mode == "TIFF":
        return encoded(image, "TIFF")
    elif mode != "L":
        image = image.convert(mode)
    return encoded(image)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "TIFF"])
def test_masks_of_ids_as_tools_write_them(mode: str) -> None:
    np.testing.assert_array_equal(read_values(mask_in(mode), OF_IDS, Counter()), VALUES)


def test_masks_of_one_bit() -> None:
    np.testing.assert_array_equal(read_values(mask_in("two levels"), OF_IDS, Counter()), VALUES % 255 > 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "large"])
def test_masks_of_colours_as_tools_write_them(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(in_colours(VALUES))
    if mode == "RGBA":
        image = image.convert("RGBA")
        image.putalpha(Image.fromarray(np.where(VALUES == 0, 0, 255).astype(np.uint8)))
    if mode == "P":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    if mode == "large":
        monkeypatch.setattr("multas_ray.formats.class_maps.STRIP", 100)
    np.testing.assert_array_equal(read_values(encoded(image), OF_COLOURS, Counter()), VALUES)


def test_what_means_nothing_in_a_mask_is_refused() -> None:
    strange = in_colours(VALUES)
    strange[20, 25] = 1, 2, 3
    sixteen = VALUES.astype(np.uint16) * 257
    for mask, classes, problem in [
        (
            encoded(VALUES + np.uint8(9)),
            OF_IDS,
            "mask values 8, 9, 10, 11: classes.txt has none",
        ),
        (encoded(sixteen), OF_IDS, "16 bits or more a pixel"),
        (encoded(sixteen, "TIFF"), OF_IDS, "16 bits or more a pixel"),
        (encoded(Image.fromarray(VALUES.astype(np.int32)), "TIFF"), OF_IDS, "16 bits or more a pixel"),
        (encoded(Image.fromarray(VALUES.astype(np.float32)), "TIFF"), OF_COLOURS, "found mode F"),
        (encoded(in_colours(VALUES)), OF_IDS, "a mask of colours .mode RGB., and classes.txt says what ids mean"),
        (encoded(strange), OF_COLOURS, "#010203 in a mask of colours are no class's: classes.txt has no such colour"),
        (encoded(VALUES), OF_COLOURS, "#010101"),
        (b"no mask", OF_IDS, "broken mask"),
        (encoded(VALUES)[:60], OF_IDS, "broken mask"),
    ]:
        with pytest.raises(Reject, match=problem):
            read_values(mask, classes, Counter())


def test_rgb_of_16_bits_is_refused() -> None:
    """Pillow would take the upper eight bits without a word."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">6H", *[128 << 8, 64 << 8, 128 << 8] * 2))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(png)).mode == "RGB"
    with pytest.raises(Reject, match="16 bits or more"):
        read_values(png, OF_COLOURS, Counter())


def test_zero_may_be_nothing(kit: Kit) -> None:
    kit.add("images/a.png", "masks/a.png", VALUES)
    options = {"classes": kit.classes("cat", "dog"), "reduce_zero_label": True}
    [row] = kit.rows(**options)
    assert isinstance(row, Row)
    np.testing.assert_array_equal(row.mask, np.choose(np.digitize(VALUES, [1, 2, 255]), [255, 0, 1, 255]))
    for more in ({"preset": "ade20k", "classes": None}, {"classes": kit.classes("cat: 1,2,3")}):
        with pytest.raises(UserError, match="--reduce-zero-label"):
            kit.source(**(options | more))


# Pairs.


def test_sub_folders_are_kept_and_suffixes_told_apart(kit: Kit) -> None:
    for name in ("day/a.jpg", "night/a.jpg", "b.jpg", "b.png"):
        kit.add(f"images/{name}", f"masks/{name.rsplit('.')[0]}.png")
    file = kit.classes("sky", "road", "car")
    ids = [row.image_id for row in kit.rows(classes=file)]
    assert ids == ["b.jpg", "b.png", "day/a", "night/a"]


def test_splits_are_in_sub_folders_of_their_names(kit: Kit) -> None:
    for split in ("training", "validation"):
        kit.add(f"images/{split}/a.jpg", f"annotations/{split}/a.png", np.ones((30, 40), np.uint8))
    arguments = ["--preset", "ade20k"]
    assert len(kit.prepare("images", "annotations", *arguments, split="training,validation")) == 2
    splits = read_info(str(kit.out)).splits
    assert splits == {"training": {"seg": 1}, "validation": {"seg": 1}}
    with pytest.raises(UserError, match=r"--split test: of several splits, each needs a folder of its name"):
        kit.source("images", "annotations", preset="ade20k", split=["training", "test"])
    # One split may be the whole of its folders, or a part of that name.
    assert [row.image_id for row in kit.rows("images", "annotations", preset="ade20k")] == [
        "training/a",
        "validation/a",
    ]
    assert [row.image_id for row in kit.rows("images", "annotations", preset="ade20k", split=["training"])] == ["a"]


def test_an_image_without_a_mask(kit: Kit) -> None:
    kit.add("images/a.jpg", "masks/a.png")
    kit.add("images/b.jpg")
    file = kit.classes("sky", "road", "car")
    with pytest.raises(UserError, match=r"1 of 2 images have no mask in .*masks, such as b.jpg: --missing unlabelled"):
        kit.source(classes=file)
    rows = kit.rows(classes=file, missing="unlabelled")
    assert [row.task_mask for row in rows if isinstance(row, Row)] == ["seg", "none"]
    assert [row.task_mask for row in kit.rows(classes=file, missing="skip") if isinstance(row, Row)] == ["seg"]


def test_unusable_arguments_are_named(kit: Kit) -> None:
    kit.add("images/a.png", "masks/a.png")
    file = kit.classes("sky", "road", "car")
    for arguments, problem in [
        ({}, r"give either --classes FILE or --preset cityscapes-labelids\|"),
        ({"classes": file, "preset": "ade20k"}, "give either"),
        ({"classes": file, "image_suffix": "_img"}, "no image here whose name ends in _img"),
        ({"classes": file, "masks_": "images"}, "images and masks in one folder; --mask-suffix says"),
        ({"classes": kit.root / "none.txt"}, "none.txt: cannot be read"),
    ]:
        with pytest.raises(UserError, match=problem):
            kit.source(**arguments)
    (kit.root / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no image here"):
        kit.source("empty", classes=file)


def test_one_bad_mask_costs_one_row(kit: Kit) -> None:
    for name in "abcd":
        kit.add(f"images/{name}.png", f"masks/{name}.png")
    (kit.root / "masks" / "b.png").write_bytes(b"")
    Image.fromarray(VALUES[:20]).save(kit.root / "masks" / "c.png")
    (kit.root / "masks" / "d.png").rename(kit.root / "d.png")
    (kit.root / "masks" / "d.png").symlink_to(kit.root / "d.png")
    file = kit.classes("sky", "road", "car")
    rows = kit.prepare("images", "masks", "--classes", str(file), "--max-rejected", "0.8")
    assert [row["image_id"] for row in rows] == ["a"]
    rejected = [json.loads(line)["reason"] for line in (kit.out / "rejected.jsonl").read_text().splitlines()]
    assert rejected == ["broken mask", "mask of another size", "outside its folder"]
    arguments = ["--classes", str(file), "--max-rejected", "0.8", "--follow-links", "--overwrite"]
    assert len(kit.prepare("images", "masks", *arguments)) == 2


def test_any_process_reads_any_item_and_listing_opens_none(kit: Kit) -> None:
    kit.add("images/a.png", "masks/a.png")
    kit.add("images/b.png", "masks/b.png")
    (kit.root / "images" / "b.png").write_bytes(b"no image")
    (kit.root / "masks" / "b.png").write_bytes(b"no mask")
    split = kit.source(classes=kit.classes("sky", "road", "car")).splits["train"]
    read = pickle.loads(pickle.dumps(split.read))
    rows = [read(pickle.loads(pickle.dumps(item))) for item in split.items]
    assert pickle.dumps(rows[0]) == pickle.dumps(split.read(split.items[0]))
    assert isinstance(rows[1], Reject)


@pytest.mark.parametrize("frame", ["upright", "filed"])
def test_a_mask_is_turned_with_its_image(kit: Kit, frame: str) -> None:
    kit.add("images/a.png", "masks/a.png", VALUES if frame == "upright" else np.rot90(VALUES).copy())
    filed = encoded(np.rot90(np.zeros((30, 40, 3), np.uint8)).copy())
    (kit.root / "images" / "a.png").write_bytes(with_exif(filed, 6))
    [row] = kit.prepare("images", "masks", "--classes", str(kit.classes("sky", "road", "car")))
    np.testing.assert_array_equal(mask_of(row), VALUES)


# Data sets without boxes, and without a background.


def test_a_data_set_without_classes_of_boxes(kit: Kit) -> None:
    kit.add("images/a.png", "masks/a.png")
    kit.add("images/b.png")
    file = kit.classes("sky", "road", "car")
    kit.prepare("images", "masks", "--classes", str(file), "--missing", "unlabelled")
    info, index = read_info(str(kit.out)), read_index(str(kit.out), "train")
    assert (info.det_classes, info.seg_classes) == ([], ["sky", "road", "car"])
    assert info.splits == {"train": {"none": 1, "seg": 1}}
    found = count(index, info, lambda rows: None)
    assert (found.rows["seg"], len(found.boxes), found.rejected) == (1, 0, [])
    assert found.pixels[:3].tolist() == np.bincount(VALUES.ravel())[:3].tolist()
    row = read_row(index, 0)
    assert (row["has_det"], row["has_seg"], len(row["boxes"])) == (False, True, 0)
    # A further split of the same classes is added.
    kit.prepare("images", "masks", "--classes", str(file), "--missing", "skip", split="val")
    assert read_info(str(kit.out)).splits["val"] == {"seg": 1}


def test_a_first_class_that_is_no_background_is_a_class(kit: Kit) -> None:
    """255 beside it is not taken for objects that a background lacks."""
    kit.add("images/a.png", "masks/a.png", np.where(VALUES == 1, 0, 255).astype(np.uint8))
    assert len(kit.prepare("images", "masks", "--classes", str(kit.classes("road")))) == 1
    with pytest.raises(UserError, match="no class is in any mask"):
        kit.prepare("images", "masks", "--classes", str(kit.classes("background", "road")), "--overwrite")


def test_real_photographs_are_read_as_vocs_reader_does(kit: Kit) -> None:
    root = shared_path("data", "voc2012-animals", "VOC2012")
    original = voc.read(voc.Options(root=root, val="Main/val")).splits["val"]
    theirs = {item.image_id: item for item in original.items[:25]}
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (kit.root / folder).mkdir(parents=True)
        for image_id in theirs:
            name = f"{image_id}.{suffix}"
            (kit.root / folder / name).write_bytes((root / folder / name).read_bytes())
    file = kit.classes("background", *CLASSES)
    rows = kit.rows("JPEGImages", "SegmentationClass", classes=file)
    assert len(rows) == 25
    for ours in rows:
        expected = original.read(theirs[ours.image_id])
        assert isinstance(ours, Row)
        assert isinstance(expected, Row)
        np.testing.assert_array_equal(ours.mask, expected.mask)
        assert (ours.image, ours.has_det) == (expected.image, False)
