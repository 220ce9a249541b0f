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
from multas_ray.formats.class_maps import MaskClasses
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


def yolo(folder: Path) -> Callable[[Random], Case]:
    """A folder in YOLO's layout: its data.yaml, a list of images, label files and masks."""
    root = folder / "set"
    _pictures(root / "images" / "train")
    content = {
        "path": str(root), "train": "images/train", "val": ["images/train"], "test": "none", "nc": 3,
        "names": {0: "cat", 1: "dog", 2: "cow"}, "kpt_shape": None, "masks_dir": None,
        "label_mapping": {-1: "ignore_label", 8: 0, 7: 1},
    }  # fmt: skip
    good: dict[str, bytes] = {
        "labels/train/1.txt": b"0 0.5 0.5 0.25 0.2\n1 0.1 0.1 0.2 0.2\n",
        "labels/train/2.txt": b"2 0.25 0.2 0.5 0.2 0.5 0.6 0.25 0.6\n1 0.1 0.1 0.9 0.1 0.5 0.9\n",
        "labels/train/3.txt": b"",
        "train.txt": b"./images/train/1.jpg\nimages/train/2.jpg\n",
    }
    for number in (1, 2, 3):
        good[f"masks/train/{number}.png"] = encode(Image.fromarray(VALUES), "PNG")

    def make(rng: Random) -> Case:
        tree = content | {"train": rng.choice(("images/train", "images/train", "train.txt", "../images/train"))}
        if rng.random() < 0.3:
            tree["masks_dir"] = "masks"
        # JSON is YAML.
        data = encoded(rng, mutated_tree(rng, tree)) if rng.random() < 0.6 else json.dumps(tree).encode()
        files = {"data.yaml": data, **good}
        for name in rng.sample(sorted(good), rng.choice((1, 1, 2))):
            files[name] = mutated_bytes(rng, good[name])
        for name, content_of in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content_of)
        changed = b"\n".join(found for name, found in files.items() if found != good.get(name))
        command = ["yolo", "--data", str(root / "data.yaml"), "--split", "train"]
        command += rng.choice(([], [], ["--missing", "unlabelled"], ["--missing", "empty"], ["--classes", "dog"]))
        return changed, lambda: _prepare(folder, command)

    return make


def masks(folder: Path) -> Callable[[Random], Case]:
    """Folders of images and masks, and the file of their classes."""
    _pictures(folder / "images")
    colours = np.zeros((40, 60, 3), np.uint8)
    colours[5:20, 10:30] = 128, 64, 128
    ids = encode(Image.fromarray(VALUES), "PNG")
    kinds = [
        (b"# mine\nsky: 0\nroad: 8\n", ids),
        (b"Pixel Value, Class\n0, background\n8, cat\n255, void\n", ids),
        (b"road: 128,64,128\nVoid:0,0,0::\n", encode(Image.fromarray(colours), "PNG")),
        (b"128 64 128\troad\n0 0 0\tsky\n", encode(Image.fromarray(colours).convert("RGBA"), "PNG")),
    ]

    def make(rng: Random) -> Case:
        classes, mask = rng.choice(kinds)
        changed_classes = mutated_bytes(rng, classes, 3) if rng.random() < 0.5 else classes
        (folder / "classes.txt").write_bytes(changed_classes)
        changed = [mutated_bytes(rng, mask) if rng.random() < 0.5 else mask for _ in range(3)]
        for number, data in enumerate(changed, start=1):
            (folder / "masks" / f"{number}.png").parent.mkdir(exist_ok=True)
            (folder / "masks" / f"{number}.png").write_bytes(data)
        command = ["masks", "--images", str(folder / "images"), "--masks", str(folder / "masks"), "--split", "train"]
        command += rng.choice(([], [], ["--reduce-zero-label"]))
        command += ["--classes", str(folder / "classes.txt")]
        return b"\n".join([changed_classes, *changed]), lambda: _prepare(folder, command)

    return make


def bdd100k(folder: Path) -> Callable[[Random], Case]:
    """A folder of BDD100K: frames, masks, and images in two sets."""
    root = folder / "bdd100k"
    box = {"x1": 3, "y1": 4.5, "x2": 20, "y2": 30}
    good = [
        {"name": f"{number}.jpg", "attributes": {"weather": "clear"}, "timestamp": 10000, "labels": [
            {"id": "1", "category": "car", "attributes": {"crowd": False}, "box2d": box},
            {"id": "2", "category": "person", "attributes": None, "box2d": {"x1": 0, "y1": 0, "x2": 59.5, "y2": 9}},
            {"id": "3", "category": "lane", "poly2d": [{"vertices": [[0, 0], [9, 9]], "types": "LL"}]},
        ]}
        for number in (1, 2, 3)
    ]  # fmt: skip
    mask = encode(Image.fromarray(VALUES), "PNG")
    for place in ("images/100k/train", "images/10k/train"):
        _pictures(root / place)
    for place in ("labels/sem_seg/masks/train", "labels/det_20"):
        (root / place).mkdir(parents=True)

    def make(rng: Random) -> Case:
        frames = encoded(rng, mutated_tree(rng, good)) if rng.random() < 0.8 else json.dumps(good).encode()
        (root / "labels/det_20/det_train.json").write_bytes(frames)
        shown = frames
        for number in (1, 2):
            data = mutated_bytes(rng, mask) if rng.random() < 0.2 else mask
            (root / f"labels/sem_seg/masks/train/{number}.png").write_bytes(data)
            shown += data if data != mask else b""
        return shown, lambda: _prepare(folder, ["bdd100k", "--root", str(root)])

    return make


def huggingface(folder: Path) -> Callable[[Random], Case]:
    """Parquet files as `datasets` writes them: their metadata, types, values and bytes."""
    root = folder / "hub"
    root.mkdir()
    jpeg = encode(Image.fromarray(PIXELS), "JPEG")
    mask = encode(Image.fromarray(VALUES), "PNG")
    category = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    feature = {"feature": {"bbox": {"_type": "Sequence"}, "category": category}, "_type": "Sequence"}
    about = {"info": {"features": {"image": {"_type": "Image"}, "objects": feature}}, "fingerprint": "0a"}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    numbers = [pa.float64(), pa.float32(), pa.int64()]

    def make(rng: Random) -> Case:
        number, whole = rng.choice(numbers), rng.choice((pa.int64(), pa.int16(), pa.uint64()))
        of_structs = rng.random() < 0.5
        boxes = [rng.choice(([3, 4, 20, 10], [0, 0, 60, 40], [1, 2, 3], [], None, [2**20, 0, -1, 2])) for _ in range(6)]
        labels = [rng.choice((0, 1, 1, 0, 1, rng.choice((7, None)))) for _ in boxes]
        if rng.random() < 0.6:
            boxes, labels = [[3, 4, 20, 10]] * 6, [0, 1] * 3
        box = rng.choice((pa.list_(number), pa.large_list(number)))
        if of_structs:
            kind = pa.list_(pa.struct({"bbox": box, "category": whole}))
            things: list[Any] = [{"bbox": box, "category": label} for box, label in zip(boxes, labels, strict=True)]
            objects: list[Any] = [things[:2], things[2:5], rng.choice((None, [], things[5:], [None]))]
        else:
            kind = pa.struct({"bbox": pa.list_(box), "category": pa.list_(whole)})
            ends = [(0, 2), (2, 5), (5, rng.choice((5, 6)))]
            objects = [{"bbox": boxes[first:end], "category": labels[first:end]} for first, end in ends]
            objects[2] = rng.choice(
                (None, objects[2], {"bbox": [], "category": labels}, {"bbox": None, "category": []})
            )
        pictures = [
            {"bytes": rng.choice((jpeg, jpeg, jpeg, mutated_bytes(rng, jpeg), None)), "path": "x"} for _ in objects
        ]
        masks = [
            rng.choice((None, {"bytes": rng.choice((mask, mutated_bytes(rng, mask))), "path": None})) for _ in objects
        ]
        columns = {"image": pa.array(pictures, image), "objects": pa.array(objects, kind)}
        if rng.random() < 0.5:
            columns["label"] = pa.array(masks, image)
        if rng.random() < 0.3:
            columns[rng.choice(("image_id", "width", "objects"))] = pa.array(
                rng.choice(([1, 2, None], ["a", "b", "b"]))
            )
        text = encoded(rng, mutated_tree(rng, about)) if rng.random() < 0.2 else json.dumps(about).encode()
        stream = io.BytesIO()
        pq.write_table(pa.table(columns, metadata={b"huggingface": text}), stream, row_group_size=rng.choice((1, 2, 9)))
        data = mutated_bytes(rng, stream.getvalue(), 4) if rng.random() < 0.5 else stream.getvalue()
        (root / "train-00000-of-00001.parquet").write_bytes(data)
        command = ["huggingface", "--root", str(root), "--mask-classes", "a,b,c,d,e,f,g,h,i", "--reduce-zero-label"]
        command += rng.choice(([], [], ["--boxes", "xyxy"], ["--classes", "cat,dog"]))
        return data, lambda: _prepare(folder, command)

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
            reader = RowReader(files, MaskClasses(["cat"], ["cat"], {}))
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
