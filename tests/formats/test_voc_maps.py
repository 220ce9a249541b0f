"""Masks with a map of their own: CVAT's colours in labelmap.txt, and Roboflow's values in _classes.csv."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import prepare as job
from multas_ray.errors import UserError
from multas_ray.formats import voc
from tests.support.shared import shared_path

VALUES = np.zeros((30, 40), np.uint8)
VALUES[:10], VALUES[10:14, 5:20] = 1, 2
COLOURS = {0: (0, 128, 0), 1: (10, 20, 30), 2: (200, 0, 0), 255: (255, 255, 255)}
LABEL_MAP = """# label:color_rgb:parts:actions
background:0,128,0::
road:10,20,30::
car:200,0,0:wheel,door:parking
void:255,255,255::
"""
CLASSES = "Pixel Value, Class\n0, background\n1, road\n2, car\n"


def in_colours(values: np.ndarray) -> Image.Image:
    """A mask of CVAT's."""
    pixels = np.zeros((*values.shape, 3), np.uint8)
    for value, colour in COLOURS.items():
        pixels[values == value] = colour
    return Image.fromarray(pixels)


def photo(file: Path) -> None:
    """Write an image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (90, 120, 40)).save(file)


def cvat(folder: Path, label_map: str = LABEL_MAP, values: np.ndarray = VALUES) -> None:
    """CVAT's `Segmentation mask 1.1` with images, in two subsets: no Annotations, masks in colours."""
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "SegmentationClass").mkdir()
    (folder / "SegmentationObject").mkdir()
    (folder / "labelmap.txt").write_text(label_map)
    for subset, names in [("train", ["a x", "b"]), ("val", ["c"])]:
        (folder / "ImageSets" / "Segmentation" / f"{subset}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            photo(folder / "JPEGImages" / f"{name}.jpg")
            in_colours(values).save(folder / "SegmentationClass" / f"{name}.png")


def roboflow(folder: Path, table: str = CLASSES, values: np.ndarray = VALUES) -> None:
    """Roboflow's export of semantic masks: a folder a split, masks and their table beside the images."""
    for split, names in [("train", ["a_jpg.rf.09f", "b_jpg.rf.c1"]), ("valid", ["c_jpg.rf.aa"]), ("test", [])]:
        (folder / split).mkdir(parents=True)
        (folder / split / "_classes.csv").write_text(table)
        for name in names:
            photo(folder / split / f"{name}.jpg")
            Image.fromarray(values).save(folder / split / f"{name}_mask.png")


def prepare(root: Path, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Run the job, and return the rows that it wrote by split."""
    out = root.parent / "out"
    job.main(["voc", "--root", str(root), "--out", str(out), "--overwrite", *arguments])
    info = json.loads((out / "dataset.json").read_text())
    return {split: pq.read_table(out / split).to_pylist() for split in info["splits"]}


def mask_of(row: dict[str, Any]) -> np.ndarray:
    """The mask of a stored row."""
    return np.asarray(Image.open(io.BytesIO(row["mask"])))


def test_cvats_masks_in_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Background is of any colour; validation images have what the folder has, and here that is masks."""
    values = VALUES.copy()
    values[20:, 30:] = 255
    cvat(tmp_path / "cvat", values=values)
    rows = prepare(tmp_path / "cvat", "--seg", "Segmentation/train", "--val", "Segmentation/val")
    assert {split: [row["image_id"] for row in found] for split, found in rows.items()} == {
        "train": ["a x", "b"],
        "val": ["c"],
    }
    for row in [*rows["train"], *rows["val"]]:
        assert (row["has_det"], row["has_seg"]) == (False, True)
        np.testing.assert_array_equal(mask_of(row), values)
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["seg_classes"] == ["background", "road", "car"]
    printed = capsys.readouterr().out
    assert "val: annotated with masks alone" in printed
    assert "train: 200 mask pixels that the masks themselves ignore (void)" in printed
    [row] = prepare(tmp_path / "cvat", "--val", "Segmentation/val", "--classes", "car")["val"]
    np.testing.assert_array_equal(mask_of(row), np.choose(np.digitize(values, [1, 2, 255]), [0, 255, 1, 255]))


def test_a_colour_that_no_class_has_rejects_its_image(tmp_path: Path) -> None:
    cvat(tmp_path / "cvat", LABEL_MAP.replace("car:200,0,0", "car:200,0,1"))
    with pytest.raises(UserError, match=r"3 of 3 rows rejected.* 3 unknown colour .*#c80000"):
        prepare(tmp_path / "cvat", "--seg", "all")


def test_roboflows_masks_beside_their_images(tmp_path: Path) -> None:
    roboflow(tmp_path / "export")
    rows = prepare(tmp_path / "export")
    assert {split: [row["image_id"] for row in found] for split, found in rows.items()} == {
        "train": ["train/a_jpg.rf.09f", "train/b_jpg.rf.c1"],
        "val": ["valid/c_jpg.rf.aa"],
    }
    for row in [*rows["train"], *rows["val"]]:
        assert (row["has_det"], row["has_seg"]) == (False, True)
        np.testing.assert_array_equal(mask_of(row), VALUES)
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["seg_classes"] == ["background", "road", "car"]
    # One of its folders by itself.
    rows = prepare(tmp_path / "export" / "train", "--seg", "all")
    assert [row["image_id"] for row in rows["train"]] == ["a_jpg.rf.09f", "b_jpg.rf.c1"]


def test_a_mask_that_is_missing_rejects_its_image(tmp_path: Path) -> None:
    roboflow(tmp_path / "export")
    (tmp_path / "export" / "train" / "b_jpg.rf.c1_mask.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 rows rejected.*1 missing mask"):
        prepare(tmp_path / "export")
    assert len(prepare(tmp_path / "export", "--max-rejected", "0.5")["train"]) == 1


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("", "0 values"),
        ("Pixel Value, Class\n0, background\n", "1 values"),
        ("Pixel Value, Class\n1, road\n2, car\n", "'1, road' in place of value 0"),
        ("Pixel Value, Class\n0, road\n1, car\n", "'0, road' in place of value 0"),
        ("Pixel Value, Class\n0, background\n2, road\n", "'2, road' in place of value 1"),
        ("Pixel Value, Class\n0, background\n1, road\n2, road\n", "'2, road' in place of value 2"),
        ("Pixel Value, Class\n0, background\n1\n", "'1' in place of value 1"),
        ("Pixel Value, Class\n0, background\n1, " + "x" * 200_000, "no table"),
    ],
)
def test_tables_that_are_none_are_named(tmp_path: Path, table: str, problem: str) -> None:
    roboflow(tmp_path / "export", table)
    with pytest.raises(UserError, match=f"_classes.csv: {problem}"):
        prepare(tmp_path / "export")


def test_tables_are_the_same_in_all_folders(tmp_path: Path) -> None:
    roboflow(tmp_path / "export")
    (tmp_path / "export" / "valid" / "_classes.csv").write_text(CLASSES.replace("car", "van"))
    with pytest.raises(UserError, match=r"valid/_classes.csv: not the same as .*train/_classes.csv"):
        prepare(tmp_path / "export")


def test_roboflows_xml_in_its_folders(tmp_path: Path) -> None:
    xml = (
        "<annotation><filename>x</filename><size><width>40</width><height>30</height></size><object><name>{}</name>"
        "<bndbox><xmin>2</xmin><xmax>21</xmax><ymin>3</ymin><ymax>13</ymax></bndbox></object></annotation>"
    )
    for split, name in [("train", "helmet"), ("valid", "vest"), ("test", "vest")]:
        photo(tmp_path / "export" / split / "same.jpg")
        (tmp_path / "export" / split / "same.xml").write_text(xml.format(name))
    rows = prepare(tmp_path / "export")
    assert {split: [row["labels"] for row in found] for split, found in rows.items()} == {
        "train": [[0]],
        "val": [[1]],
        "test": [[1]],
    }
    assert rows["val"][0]["boxes"] == [[1, 2, 21, 13]]
    (tmp_path / "export" / "valid" / "same.xml").unlink()
    with pytest.raises(UserError, match="1 missing annotation"):
        prepare(tmp_path / "export")


def test_a_folder_without_annotation_is_named(tmp_path: Path) -> None:
    photo(tmp_path / "export" / "train" / "a.jpg")
    with pytest.raises(UserError, match=r"train: no images with XML, or with masks and _classes.csv, are here"):
        voc.read(voc.Options(root=tmp_path / "export"))
    with pytest.raises(UserError, match=r"nothing to read; give at least one of .*train, valid, test"):
        voc.read(voc.Options(root=tmp_path))


def test_masks_that_are_mostly_void_are_refused_and_those_of_one_class_are_not(tmp_path: Path) -> None:
    values = np.full((30, 40), 255, np.uint8)
    values[:5] = 2
    roboflow(tmp_path / "export", values=values)
    with pytest.raises(UserError, match=r"train: 83\.3% of the masks' pixels are void \(255\) in their files"):
        prepare(tmp_path / "export")
    # Ignored because their class is not kept: what was asked for.
    cvat(tmp_path / "cvat", f"{LABEL_MAP}van:9,9,9::\n", np.where(values == 2, 2, 1).astype(np.uint8))
    [row] = prepare(tmp_path / "cvat", "--val", "Segmentation/val", "--classes", "car")["val"]
    assert np.bincount(mask_of(row).ravel())[[1, 255]].tolist() == [200, 1000]
    with pytest.raises(UserError, match=r"val: no class is in any mask, and 100.0% of the pixels are ignored"):
        prepare(tmp_path / "cvat", "--val", "Segmentation/val", "--classes", "van")


def test_real_photographs(tmp_path: Path) -> None:
    """Two exports of the same photographs and masks, in colours and in values, are read alike."""
    animals = shared_path("data", "voc2012-animals", "VOC2012")
    names = (animals / "ImageSets" / "Main" / "val.txt").read_text().split()[:12]
    kept = {3: "bird", 8: "cat", 12: "dog", 15: "person"}
    palette = {value: (value * 10, 255 - value, 7) for value in kept} | {0: (0, 0, 0), 255: (224, 224, 192)}
    lines = [f"{name}:{','.join(map(str, palette[value]))}::" for value, name in kept.items()]
    colours, export = tmp_path / "cvat", tmp_path / "export" / "train"
    for folder in (colours / "JPEGImages", colours / "SegmentationClass", export):
        folder.mkdir(parents=True)
    (colours / "labelmap.txt").write_text("\n".join(["background:0,0,0::", *lines, "void:224,224,192::"]))
    rows = [f"{value}, {name}" for value, name in enumerate(["background", *kept.values()])]
    (export / "_classes.csv").write_text("\n".join(["Pixel Value, Class", *rows]))
    for name in names:
        values = np.asarray(Image.open(animals / "SegmentationClass" / f"{name}.png"))
        values = np.where(np.isin(values, [*palette]), values, 255)
        picture, numbers = np.zeros((*values.shape, 3), np.uint8), np.full(values.shape, 255, np.uint8)
        for number, value in enumerate([0, *kept]):
            picture[values == value], numbers[values == value] = palette[value], number
        picture[values == 255] = palette[255]
        Image.fromarray(picture).save(colours / "SegmentationClass" / f"{name}.png")
        Image.fromarray(numbers).save(export / f"{name}_mask.png")
        for place in (colours / "JPEGImages", export):
            (place / f"{name}.jpg").write_bytes((animals / "JPEGImages" / f"{name}.jpg").read_bytes())
    of_colours = prepare(colours, "--seg", "all", "--classes", "dog,cat,person")["train"]
    of_values = prepare(export, "--seg", "all", "--classes", "dog,cat,person")["train"]
    assert [row["image_id"] for row in of_colours] == [row["image_id"] for row in of_values] == sorted(names)
    present = set()
    for one, other in zip(of_colours, of_values, strict=True):
        np.testing.assert_array_equal(mask_of(one), mask_of(other))
        present |= set(np.unique(mask_of(one)).tolist())
    assert {0, 1, 2, 3, 255} >= present > {0, 255}
