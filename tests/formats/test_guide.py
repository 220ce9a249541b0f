"""docs/guide/data.md: each of its folders becomes a data set that its training can use, by its own two commands."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import prepare as job
from multas_ray.config_file import load_config
from multas_ray.data.pillow import encode
from multas_ray.data.schema import read_info
from multas_ray.formats.flags import parsed_options
from multas_ray.train.run import plan_run
from tests.support.shared import ROOT

BOX, OUTLINE = "1 0.5 0.5 0.25 0.2\n", "0 0.25 0.2 0.75 0.2 0.75 0.8\n"
SHORT = ("train.batch_size=1", "train.steps=1")


def write(name: str, content: str | np.ndarray | None = None) -> None:
    """A file of text or of an image; a photograph without content."""
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_text(content)
    else:
        Image.fromarray(np.full((30, 40, 3), 90, np.uint8) if content is None else content).save(file)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of the guide, with an image in each split."""
    monkeypatch.chdir(tmp_path)
    zeros = np.zeros((30, 40), np.uint8)
    for name, label in (("pets", BOX), ("pets_seg", OUTLINE), ("streets", None)):
        masks = "masks_dir: masks\n" if label is None else ""
        write(f"{name}/data.yaml", f"train: images/train\nval: images/val\nnames: {{0: cat, 1: dog}}\n{masks}")
        for split in ("train", "val"):
            write(f"{name}/images/{split}/001.jpg")
            if label:
                write(f"{name}/labels/{split}/001.txt", label)
            else:
                write(f"{name}/masks/{split}/001.png", zeros)
    write("roads/classes.txt", "void: 0,0,0\nroad: 128,64,128\ncar: 0,0,142\n")
    for split in ("train", "val"):
        stem = f"{split}/aachen/aachen_000000_000019"
        write(f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png")
        write(f"cityscapes/gtFine/{stem}_gtFine_labelIds.png", zeros + np.uint8(7))
        write(f"roads/images/{split}/day/1.jpg")
        write(f"roads/masks/{split}/day/1_mask.png", np.full((30, 40, 3), (128, 64, 128), np.uint8))
    for split in ("training", "validation"):
        write(f"ADEChallengeData2016/images/{split}/ADE_1.jpg")
        write(f"ADEChallengeData2016/annotations/{split}/ADE_1.png", zeros + np.uint8(1))
    write_bdd100k(zeros)
    write_huggingface(zeros)


def write_bdd100k(mask: np.ndarray) -> None:
    """An image of each of its two sets in each split."""
    label = {"category": "car", "box2d": {"x1": 1, "y1": 2, "x2": 30, "y2": 20}}
    for split in ("train", "val"):
        write(f"bdd100k/labels/det_20/det_{split}.json", json.dumps([{"name": f"{split}-1.jpg", "labels": [label]}]))
        write(f"bdd100k/images/100k/{split}/{split}-1.jpg")
        write(f"bdd100k/labels/sem_seg/masks/{split}/{split}-2.png", mask)
        write(f"bdd100k/images/10k/{split}/{split}-2.jpg")


def write_huggingface(mask: np.ndarray) -> None:
    """A data set of objects, whose classes its files name, and one of masks."""
    image = {"bytes": encode(Image.new("RGB", (40, 30)), "JPEG"), "path": "1.jpg"}
    category = {"feature": {"names": ["Coverall", "Mask"], "_type": "ClassLabel"}, "_type": "List"}
    about = {"huggingface": json.dumps({"info": {"features": {"objects": {"category": category}}}})}
    objects = pa.Table.from_pylist([{"image": image, "objects": {"bbox": [[1.0, 2.0, 20.0, 10.0]], "category": [1]}}])
    label = {"bytes": encode(Image.fromarray(mask + np.uint8(1)), "PNG"), "path": "1.png"}
    for folder, table in [
        ("cppe-5", objects.replace_schema_metadata(about)),
        ("sidewalk", pa.Table.from_pylist([{"pixel_values": image, "label": label}])),
    ]:
        for split in ("train", "validation"):
            Path(folder, "data").mkdir(parents=True, exist_ok=True)
            pq.write_table(table, f"{folder}/data/{split}-00000-of-00001.parquet")
    write("sidewalk/id2label.json", json.dumps({"0": "unlabeled", "1": "flat-road"}))


COMMANDS = re.findall(
    r"^    python jobs/(prepare|train)\.py (.*)$",
    (ROOT / "docs/guide/data.md").read_text().replace("\\\n", " "),
    re.MULTILINE,
)


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=lambda part: part[:60])
def test_a_command_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str) -> None:
    """Flags go together, and configurations are there."""
    words = shlex.split(line)
    if name == "train":
        load_config(str(ROOT / words[words.index("--config") + 1]), [word for word in words if "=" in word])
        return
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.endswith(".json"):
            write(word, json.dumps({"0": "road"}))
        elif not word.startswith("-"):
            Path(word).mkdir(parents=True, exist_ok=True)
    args = job.parse(words)
    parsed_options(args.format.Options, args)


@pytest.mark.usefixtures("folders")
def test_two_commands_lead_to_a_training() -> None:
    """In the formats whose folders are small enough to be made here; those of COCO and VOC have tests of their own."""
    text = (ROOT / "docs/guide/data.md").read_text().replace("\\\n", " ")
    pairs = re.findall(r"^    python jobs/prepare\.py (.*)\n    python jobs/train\.py --config (\S+) (.*)$", text, re.M)
    here = [pair for pair in pairs if shlex.split(pair[0])[0] not in ("coco", "voc", "holdout")]
    assert len(here) == 9
    for prepare, file, overrides in here:
        job.main(shlex.split(prepare))
        config = load_config(str(ROOT / file), [*shlex.split(overrides), "data.mixing=natural", *SHORT])
        assert plan_run(config, {}).steps == 1, prepare
        info = read_info(str(config.data.path))
        assert all(info.classes[task] for task in config.model.tasks), prepare
        assert config.data.val in info.splits, prepare
