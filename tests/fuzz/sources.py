"""What data sets are prepared from, and what is predicted for."""

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs import prepare
from multas_ray.data.pillow import encode
from multas_ray.formats.class_maps import ClassMap
from multas_ray.formats.voc_folder import VocFolder, VocImage
from multas_ray.formats.voc_rows import RowReader
from tests.fuzz.harness import Case
from tests.fuzz.mutate import INTERESTING, encoded, mutated_bytes, mutated_tree
from tests.fuzz.pictures import PIXELS, VALUES


def coco(folder: Path) -> Callable[[Random], Case]:
    """An instances file, with which images and a data set are read and written."""
    _pictures(folder / "images")
    good = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 4, 20, 10], "iscrowd": 0, "area": 200.0,
             "segmentation": [[3, 4, 23, 4, 23, 14, 3, 14]]},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [30.5, 4, 5, 6], "iscrowd": 1,
             "segmentation": {"size": [40, 60], "counts": [1200, 40, 1160]}},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [1, 1, 5, 5],
             "segmentation": {"size": [40, 60], "counts": "X_15X00fUO"}},
            {"id": 4, "image_id": 2, "category_id": 1, "bbox": [1, 1, 5, 5]},
        ],
    }  # fmt: skip
    of_lvis = [image | {"neg_category_ids": [7], "not_exhaustive_category_ids": [1]} for image in good["images"]]

    def make(rng: Random) -> Case:
        data = encoded(rng, mutated_tree(rng, good | {"images": of_lvis} if rng.random() < 0.3 else good))
        (folder / "instances.json").write_bytes(data)
        command = ["coco", "--images", str(folder / "images"), "--annotations", str(folder / "instances.json")]
        command += rng.choice(
            ([], [], ["--boxes-from-masks"], ["--empty", "skip"], ["--classes", "dog"], ["--partial", "det=1"])
        )
        return data, lambda: _prepare(folder, [*command, "--split", "train"])

    return make


def roboflow(folder: Path) -> Callable[[Random], Case]:
    """The folders of a COCO export."""
    root = folder / "export"
    for name in ("train", "valid"):
        _pictures(root / name)
    good = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in (1, 2, 3)],
        "categories": [{"id": 0, "name": "pets", "supercategory": "none"},
                       {"id": 1, "name": "cat", "supercategory": "pets"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [3, 4, 20, 10], "segmentation": []}
                        for n in (1, 2, 3)],
    }  # fmt: skip

    def make(rng: Random) -> Case:
        wrong = rng.choice(("train", "valid"))
        data = encoded(rng, mutated_tree(rng, good))
        for name in ("train", "valid"):
            content = data if name == wrong else json.dumps(good).encode()
            (root / name / "_annotations.coco.json").write_bytes(content)
        return data, lambda: _prepare(folder, ["coco", "--root", str(root)])

    return make


def panoptic(folder: Path) -> Callable[[Random], Case]:
    """A file of segments, and the PNGs of their ids."""
    _pictures(folder / "images")
    (folder / "pngs").mkdir()
    colours = np.zeros((40, 60, 3), np.uint8)
    colours[5:20, 10:30], colours[30:] = (3, 7, 200), (9, 0, 0)
    png = encode(Image.fromarray(colours), "PNG")
    segments = [{"id": 3 + 7 * 256 + 200 * 65536, "category_id": 1, "iscrowd": 0, "bbox": [10, 5, 20, 15]},
                {"id": 9, "category_id": 2, "iscrowd": 0}]  # fmt: skip
    good = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "road", "isthing": 0}],
        "annotations": [{"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in (1, 2, 3)],
    }

    def make(rng: Random) -> Case:
        tree, pictures = json.dumps(good).encode(), png
        if rng.random() < 0.3:
            pictures = mutated_bytes(rng, png)
        else:
            tree = encoded(rng, mutated_tree(rng, good))
        for number in (1, 2, 3):
            (folder / "pngs" / f"{number}.png").write_bytes(pictures if number == 1 else png)
        (folder / "panoptic.json").write_bytes(tree)
        command = ["coco", "--images", str(folder / "images"), "--annotations", str(folder / "panoptic.json")]
        command += ["--panoptic", str(folder / "pngs"), "--split", "train"]
        command += rng.choice(([], [], ["--empty", "skip"], ["--classes", "road"], ["--partial", "seg=1"]))
        return tree if pictures is png else pictures, lambda: _prepare(folder, command)

    return make


def stuff(folder: Path) -> Callable[[Random], Case]:
    """Pixel maps of categories beside instances."""
    _pictures(folder / "images")
    (folder / "maps").mkdir()
    png = encode(Image.fromarray(VALUES), "PNG")
    good = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in (1, 2, 3)],
        "categories": [{"id": 8, "name": "cat"}, {"id": 9, "name": "road"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 8, "bbox": [10, 5, 20, 15]}],
    }

    def make(rng: Random) -> Case:
        tree, picture = json.dumps(good).encode(), png
        if rng.random() < 0.5:
            picture = mutated_bytes(rng, png)
        else:
            tree = encoded(rng, mutated_tree(rng, good))
        for number in (1, 2, 3):
            (folder / "maps" / f"{number}.png").write_bytes(picture if number == 1 else png)
        (folder / "instances.json").write_bytes(tree)
        command = ["coco", "--images", str(folder / "images"), "--annotations", str(folder / "instances.json")]
        command += ["--stuff", str(folder / "maps"), "--split", "train"]
        command += rng.choice(([], [], ["--stuff-values", "id-1"], ["--classes", "road"]))
        return tree if picture is png else picture, lambda: _prepare(folder, command)

    return make


def masks_beside(folder: Path) -> Callable[[Random], Case]:
    """Images, masks beside them, and the table of their values."""
    root = folder / "export"
    _pictures(root / "train")
    names = b"".join(b"%d, class %d\n" % (value, value) for value in range(1, 10))
    good = {"_classes.csv": b"Pixel Value, Class\n0, background\n" + names}
    good |= {f"{number}_mask.png": encode(Image.fromarray(VALUES), "PNG") for number in (1, 2, 3)}

    def make(rng: Random) -> Case:
        name = rng.choice(("_classes.csv", "1_mask.png"))
        files = good | {name: mutated_bytes(rng, good[name], 4)}
        for each, data in files.items():
            (root / "train" / each).write_bytes(data)
        command = ["voc", "--root", str(root)]
        return files[name], lambda: _prepare(folder, [*command, *rng.choice(([], [], ["--classes", "class 8"]))])

    return make


def voc(folder: Path) -> Callable[[Random], Case]:
    """A folder in VOC's layout: its lists, XML, masks and label map."""
    root = folder / "VOC"
    good: dict[str, bytes] = {
        "ImageSets/Main/train.txt": b"1\n2  1\n3 -1\n",
        "Annotations/1.xml": b"<annotation><size><width>60</width><height>40</height></size><object><name>cat</name>"
        b"<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>",
        "SegmentationClass/1.png": encode(Image.fromarray(VALUES), "PNG"),
    }
    for number in (2, 3):
        good[f"Annotations/{number}.xml"] = good["Annotations/1.xml"]
        good[f"SegmentationClass/{number}.png"] = good["SegmentationClass/1.png"]
    _pictures(root / "JPEGImages")
    label_map = b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:64,0,0::\nroad:1,2,3::\n"

    def make(rng: Random) -> Case:
        files = dict(good)
        if rng.random() < 0.2:
            files["labelmap.txt"] = mutated_bytes(rng, label_map, 3)
        for name in rng.sample(sorted(files), rng.choice((1, 1, 2))):
            if name != "labelmap.txt":
                files[name] = mutated_bytes(rng, files[name])
        (root / "labelmap.txt").unlink(missing_ok=True)
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        role = rng.choice(("--full", "--det", "--seg"))
        changed = b"\n".join(data for name, data in files.items() if data != good.get(name))
        return changed, lambda: _prepare(folder, ["voc", "--root", str(root), role, rng.choice(("Main/train", "all"))])

    return make


def images_list(folder: Path) -> Callable[[Random], Case]:
    """A list of images."""
    root = folder / "VOC"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    good = b"2008_000001 -1\r\nWhatsApp Image 2024\n\nday/1.jpg  1\n"

    def make(rng: Random) -> Case:
        data = mutated_bytes(rng, rng.choice((good, good.decode().encode("utf-16"))))
        (root / "ImageSets" / "Main" / "train.txt").write_bytes(data)

        def run() -> None:
            files = VocFolder(root)
            reader = RowReader(files, ClassMap(["cat"], ["cat"], {}))
            for image_id in files.read_list("Main/train", remarks=[]):
                row = reader.read(VocImage(image_id, ("det",)))
                if isinstance(row, Exception):
                    assert str(row.args[1]).isprintable()

        return data, run

    return make


def predict_rows(folder: Path) -> Callable[[Random], Case]:
    """Parquet files of images, and the names that they give them."""
    from multas_ray.deploy.images import COLUMNS, check_names, read_groups, read_names
    from multas_ray.deploy.outputs import safe_name
    from multas_ray.deploy.predict import read
    from multas_ray.storage import StoragePath

    png = encode(Image.fromarray(PIXELS), "PNG")
    names: list[Any] = [value for value in INTERESTING if isinstance(value, str)]

    def make(rng: Random) -> Case:
        ids = [rng.choice(names) + str(number) if rng.random() < 0.7 else None for number in range(3)]
        pictures = [rng.choice((png, mutated_bytes(rng, png), None, b"")) for _ in ids]
        kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string())]
        columns: dict[str, pa.Array] = {
            "image_id": pa.array(ids, rng.choice(kinds[:3])),
            "image": pa.array(pictures, rng.choice((pa.binary(), pa.large_binary()))),
            "more": pa.array([[None]] * 3, kinds[3]),
        }
        if rng.random() < 0.2:
            columns[rng.choice(COLUMNS)] = pa.array([rng.choice((1, 2.5, {"bytes": png}))] * 3)
        stream = io.BytesIO()
        pq.write_table(pa.table(columns), stream)
        data = mutated_bytes(rng, stream.getvalue(), 4) if rng.random() < 0.5 else stream.getvalue()
        (folder / "a.parquet").write_bytes(data)

        def run() -> None:
            place = StoragePath(folder / "a.parquet")
            names, groups = read_names(place)
            check_names(names, "a.parquet")
            tables = read_groups(pa.table({"path": [place.uri] * groups, "group": range(groups)}))
            rows = [row for table in tables for row in read(table, 32).to_pylist()]
            assert len(rows) >= len(names)
            for row in rows:
                assert len(row["pixels"]) == 3 * 32 * 32
                assert ".." not in Path(safe_name(row["image_id"])).parts

        return data, run

    return make


def _pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        Image.fromarray(PIXELS).save(folder / f"{number}.jpg")


def _prepare(folder: Path, command: list[str]) -> None:
    """Run the job, and look at what it wrote with other eyes than its own."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    prepare.main([*command, "--out", str(out), "--max-rejected", "0.7"])
    info = json.loads((out / "dataset.json").read_text())
    rows = pq.read_table(out / "train").to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows) == sum(info["splits"]["train"].values())
    for row in rows:
        with Image.open(io.BytesIO(row["image"])) as picture:
            picture.load()
            assert (picture.height, picture.width) == (row["height"], row["width"])
        assert len(row["boxes"]) == len(row["labels"]) == len(row["difficult"])
        assert row["has_det"] or not row["boxes"]
        for x1, y1, x2, y2 in row["boxes"]:
            assert all(map(math.isfinite, (x1, y1, x2, y2)))
            assert 0 <= x1 < x2 <= row["width"]
            assert 0 <= y1 < y2 <= row["height"]
        assert all(0 <= label < len(info["det_classes"]) for label in row["labels"])
        assert row["has_seg"] == (row["mask"] is not None)
        if row["mask"]:
            values = np.asarray(Image.open(io.BytesIO(row["mask"])))
            assert values.shape == (row["height"], row["width"])
            assert set(np.unique(values)) <= {*range(len(info["seg_classes"])), 255}
