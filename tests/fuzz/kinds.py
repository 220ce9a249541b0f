"""What is fuzzed: each kind makes a good input, makes it wrong, gives it to an entry point, and looks at what came."""

import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from jobs import prepare
from multas_ray.config_file import load_config
from multas_ray.data.class_maps import ClassMap, read_mask, voc_colours
from multas_ray.data.image import decode_labels, decode_rgb, encode, to_stored, upright_rgb, upright_size
from multas_ray.data.schema import read_info
from multas_ray.data.voc import CLASSES, Devkit
from multas_ray.documents import read_yaml
from multas_ray.study.plan import Sweep, lay_out, load_study
from multas_ray.study.search import parse_search
from tests.fuzz.harness import Case, Kind
from tests.fuzz.mutate import INTERESTING, encoded, mutated_bytes, mutated_tree

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
GOOD = CONFIGS / "animals_kd.yaml"
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8).repeat(5, 0).repeat(5, 1)
VALUES = np.zeros((40, 60), np.uint8)
VALUES[5:20, 10:30], VALUES[30:, 50:] = 8, 255


def config(folder: Path) -> Callable[[Random], Case]:
    """A configuration's file."""
    trees = [read_yaml(file) for file in sorted(CONFIGS.glob("*.yaml"))]
    trees = [tree for tree in trees if "arms" not in tree]

    def make(rng: Random) -> Case:
        data = _yaml(rng, rng.choice(trees))
        (folder / "config.yaml").write_bytes(data)
        return data, lambda: load_config(folder / "config.yaml").absolute().to_yaml()

    return make


def override(folder: Path) -> Callable[[Random], Case]:
    """Values on the command line."""
    sections = [f"{name}.{key}" for name, section in load_config(GOOD) for key in type(section).model_fields]

    def make(rng: Random) -> Case:
        value = rng.choice(INTERESTING)
        text = f"{rng.choice(sections)}={json.dumps(value) if rng.random() < 0.5 else value}"
        if rng.random() < 0.5:
            text = mutated_bytes(rng, text.encode(errors="replace"), 4).decode("utf-8", "surrogateescape")
        return text.encode(errors="replace"), lambda: load_config(GOOD, [text]).to_yaml()

    return make


def study(folder: Path) -> Callable[[Random], Case]:
    """A study's file."""
    trees = [read_yaml(file) for file in sorted(CONFIGS.glob("*.yaml"))]
    trees = [tree for tree in trees if "arms" in tree]

    def make(rng: Random) -> Case:
        data = _yaml(rng, rng.choice(trees))
        (folder / "study.yaml").write_bytes(data)
        return data, lambda: lay_out(load_study(folder / "study.yaml"))

    return make


def search(folder: Path) -> Callable[[Random], Case]:
    """Search spaces on the command line."""
    good = ["optim.lr=loguniform(1e-4,1e-2)", "distill.det.weight=choice(0.5,1,2)", "train.steps=randint(5, 9)"]

    def make(rng: Random) -> Case:
        text = rng.choice(good)
        if rng.random() < 0.3:
            domain, low, high = (
                rng.choice(("choice", "uniform", "lograndint")),
                rng.choice(INTERESTING),
                rng.choice(INTERESTING),
            )
            text = f"optim.lr={domain}({low},{high})"
        text = mutated_bytes(rng, text.encode(errors="replace"), 3).decode("utf-8", "surrogateescape")

        def run() -> None:
            space = parse_search([text])
            Sweep(read_yaml(GOOD), [text], "out", 1).config(
                {path: domain.sample() for path, domain in space.items()}, "run"
            )

        return text.encode(errors="replace"), run

    return make


def dataset_json(folder: Path) -> Callable[[Random], Case]:
    """A data set's description."""
    good = {"name": "x", "schema_version": 1, "det_classes": ["a", "b"], "seg_classes": ["background", "a"],
            "splits": {"train": {"det": 1, "both": 2}}, "source": "", "command": ""}  # fmt: skip

    def make(rng: Random) -> Case:
        data = encoded(rng, mutated_tree(rng, good))
        (folder / "dataset.json").write_bytes(data)
        return data, lambda: read_info(str(folder))

    return make


def flags(folder: Path) -> Callable[[Random], Case]:
    """`prepare`'s command line."""
    good = ["scenes", "--train", "1", "--val", "1", "--size", "32", "--partial", "det=0.5,seg=0.5", "--seed", "1",
            "--out", "out", "--name", "x", "--max-rejected", "0.1", "--overwrite"]  # fmt: skip
    # Those that would make it work for long are of no interest.
    odd = [
        "",
        " ",
        "-1",
        "0",
        "1e9",
        "nan",
        "inf",
        "x" * 5000,
        "a\0b",
        "~nobody/x",
        "é",
        "--",
        "[]",
        "0x10",
        "det=nan",
        "²",
    ]

    def make(rng: Random) -> Case:
        words = list(good)
        for _ in range(rng.choice((1, 2, 3))):
            place = rng.randrange(len(words))
            words[place] = (
                rng.choice(odd)
                if rng.random() < 0.7
                else mutated_bytes(rng, words[place].encode(errors="surrogateescape")).decode(
                    "utf-8", "surrogateescape"
                )
            )
            words[place] = (
                words[place].replace("9", "1") if words[place].isdecimal() and len(words[place]) < 9 else words[place]
            )
        shutil.rmtree(folder / "out", ignore_errors=True)
        return json.dumps(words).encode(), lambda: prepare.main(words)

    return make


def image(folder: Path) -> Callable[[Random], Case]:
    """An encoded image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    bases = []
    for format, options in [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"exif": exif}), ("PNG", {}), ("PNG", {"exif": exif}),
        ("WEBP", {}), ("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}),
        ("JPEG2000", {}), ("AVIF", {}),
    ]:  # fmt: skip
        stream = io.BytesIO()
        Image.fromarray(PIXELS).save(stream, format, **options)
        bases.append(stream.getvalue())

    def make(rng: Random) -> Case:
        data = mutated_bytes(rng, rng.choice(bases))

        def run() -> None:
            height, width, _ = upright_size(data)
            stored = to_stored(data)
            assert (stored.height, stored.width) == (height, width)
            # What is stored, training can decode.
            assert decode_rgb(stored.data, upright=False).shape == (3, height, width)

        return data, run

    return make


def mask(folder: Path) -> Callable[[Random], Case]:
    """An encoded mask."""
    palette = Image.fromarray(VALUES)
    palette.putpalette(bytes(np.random.default_rng(0).integers(0, 256, 768, np.uint8)))
    bases = [encode(each, "PNG") for each in (Image.fromarray(VALUES), palette, Image.fromarray(PIXELS))]
    classes = ClassMap(list(CLASSES), ["cat", "dog"], voc_colours(20))

    def make(rng: Random) -> Case:
        data = mutated_bytes(rng, rng.choice(bases))

        def run() -> None:
            found = read_mask(data, classes, Counter())
            assert set(np.unique(found)) <= {0, 1, 2, 255}
            decode_labels(data)

        return data, run

    return make


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

    def make(rng: Random) -> Case:
        data = encoded(rng, mutated_tree(rng, good))
        (folder / "instances.json").write_bytes(data)
        command = ["coco", "--images", str(folder / "images"), "--annotations", str(folder / "instances.json")]
        command += rng.choice(
            ([], [], ["--boxes-from-masks"], ["--empty", "skip"], ["--classes", "dog"], ["--partial", "det=1"])
        )
        return data, lambda: _prepare(folder, [*command, "--split", "train"])

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
            devkit = Devkit(root)
            for image_id in devkit.read_list("Main/train"):
                for row in devkit.read_rows([(image_id, ("det",))], ClassMap(["cat"], ["cat"], {})):
                    if isinstance(row, Exception):
                        assert str(row.args[1]).isprintable()

        return data, run

    return make


def predict_rows(folder: Path) -> Callable[[Random], Case]:
    """Parquet files of images, and the names that they give them."""
    from multas_ray.deploy.images import COLUMNS, _check_columns, _check_names
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
            try:
                with place.open() as source, pq.ParquetFile(source) as parquet:
                    _check_columns(parquet.schema_arrow, place)
                    table = parquet.read(columns=COLUMNS)
                    found = [str(value) for value in table["image_id"].to_pylist() if value is not None]
            except (OSError, pa.ArrowException):
                return
            _check_names(found, "a.parquet")
            rows = read(table, 32).to_pylist()
            assert len(rows) == len(table)
            for row in rows:
                assert len(row["pixels"]) == 3 * 32 * 32
                assert ".." not in Path(safe_name(row["image_id"])).parts

        return data, run

    return make


def pillow(folder: Path) -> Callable[[Random], Case]:
    """Images of Pillow's, of every mode."""
    modes = [
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
        "I;16",
        "I;16B",
    ]

    def make(rng: Random) -> Case:
        mode, size = rng.choice(modes), (rng.choice((1, 3, 200)), rng.choice((1, 7)))
        picture = Image.new(mode, size)
        return f"{mode} {size}".encode(), lambda: upright_rgb(picture).load()

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


def _yaml(rng: Random, tree: Any) -> bytes:
    """A tree as YAML, now and then with tags, anchors or broken bytes."""
    changed = mutated_tree(rng, deepcopy(tree))
    try:
        text = yaml.safe_dump(changed, allow_unicode=rng.random() < 0.5)
    except (ValueError, RecursionError, yaml.YAMLError):
        text = "- " * 3000
    if rng.random() < 0.2:
        tags = (
            "!!timestamp ",
            "!!bool ",
            "!!binary ",
            "!!int ",
            "!!float ",
            "!!set ",
            "!!python/name:os.system ",
            "&a ",
            "*a ",
            "<<: ",
        )
        text = text.replace(": ", f": {rng.choice(tags)}", rng.choice((1, 2, 9)))
    data = text.encode(errors="surrogatepass")
    return mutated_bytes(rng, data, 4) if rng.random() < 0.4 else data


KINDS: dict[str, Kind] = {
    "config": config,
    "override": override,
    "study": study,
    "search": search,
    "dataset": dataset_json,
    "flags": flags,
    "image": image,
    "pillow": pillow,
    "mask": mask,
    "coco": coco,
    "voc": voc,
    "list": images_list,
    "predict": predict_rows,
}
