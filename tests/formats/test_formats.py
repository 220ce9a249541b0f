"""The seam of the formats: one that is added from outside, and what holds of each."""

import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import Field

from jobs.prepare import main
from multas_ray.data.pillow import encode
from multas_ray.data.row import Row
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.formats import FORMATS, coco, holdout, scenes, voc
from multas_ray.formats.source import Options, Source, Split
from tests.support.shared import ROOT, shared_path

TINTS = {"red": (200, 0, 0), "blue": (0, 0, 200)}


class ToyOptions(Options):
    images: int = Field(ge=1)
    """how many, 100 % of them tinted"""
    tint: Literal["red", "blue"] = "red"
    """colour of the images"""
    skip_first: bool = False
    """leave the first image out"""


def read_toys(options: ToyOptions) -> Source:
    read = partial(read_toy, options.tint, options.skip_first)
    return Source("toys", {"det": ["cat"], "seg": ["sky", "road"]}, {"train": Split(range(options.images), read)})


def read_toy(tint: str, skip_first: bool, number: int) -> Row | None:
    if skip_first and number == 0:
        return None
    image = encode(Image.new("RGB", (40, 30), TINTS[tint]), "PNG")
    return Row(f"toy{number}", image, 30, 40, has_seg=True, mask=np.full((30, 40), number % 2, np.uint8))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(__doc__="Toy images.\n\nMore.", Options=ToyOptions, read=read_toys)
    monkeypatch.setitem(FORMATS, "toys", module)


@pytest.mark.usefixtures("toys")
def test_a_format_is_added_by_its_options_and_a_function(tmp_path: Path) -> None:
    main(["toys", "--images", "3", "--tint", "blue", "--skip-first", "--out", str(tmp_path / "out")])
    info = read_info(str(tmp_path / "out"))
    assert (info.name, info.det_classes, info.seg_classes) == ("toys", ["cat"], ["sky", "road"])
    assert info.splits == {"train": {"seg": 2}}
    rows = pq.read_table(tmp_path / "out" / "train").to_pylist()
    assert [row["image_id"] for row in rows] == ["toy1", "toy2"]
    (tmp_path / "image.png").write_bytes(rows[0]["image"])
    assert Image.open(tmp_path / "image.png").getpixel((0, 0)) == TINTS["blue"]


@pytest.mark.usefixtures("toys")
def test_flags_are_made_of_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"toys +Toy images\n", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["toys", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--images IMAGES [--tint {red,blue}] [--skip-first]" in text
    assert "--images IMAGES how many, 100 % of them tinted --tint {red,blue} colour of the images (default red)" in text
    for flags, problem in [
        ([], "required: --images"),
        (["--images", "0"], "--images: 0: a whole number from 1 on is needed"),
        (["--images", "1", "--tint", "green"], "--tint: invalid choice: 'green'"),
    ]:
        with pytest.raises(UserError, match=problem):
            main(["toys", "--out", "x", *flags])


def test_options_are_checked_where_python_gives_them_too() -> None:
    for options, values in [
        (scenes.Options, {"size": 8}),
        (scenes.Options, {"no_such": 1}),
        (scenes.Options, {"partial": {"det": 2}}),
        (holdout.Options, {"data": "x", "fraction": 2}),
        (voc.Options, {}),
    ]:
        with pytest.raises(ValueError, match="validation error"):
            options(**values)


def test_each_format_says_in_a_line_what_it_reads() -> None:
    for name, module in FORMATS.items():
        assert 10 < len(module.__doc__.partition("\n")[0]) < 80, name
        assert issubclass(module.Options, Options)


def scenes_source() -> Source:
    return scenes.read(scenes.Options(train=6, val=1, size=32, partial={"det": 0.5, "seg": 0.5}))


def voc_source() -> Source:
    root = shared_path("data", "voc2012-animals", "VOC2012")
    return voc.read(voc.Options(root=root, val="Main/val", unlabelled="Unlabelled/train"))


def coco_source() -> Source:
    root = shared_path("data", "coco-mini")
    file = root / "annotations" / "instances_val2017.json"
    return coco.read(coco.Options(images=root / "val2017", annotations=file, split="val", partial={"seg": 0.5}))


@pytest.mark.parametrize("make", [scenes_source, voc_source, coco_source])
def test_any_process_may_read_any_item(make: Callable[[], Source]) -> None:
    for split in make().splits.values():
        read = pickle.loads(pickle.dumps(split.read))
        for item in list(split.items[-3:]):
            row, there = split.read(item), read(pickle.loads(pickle.dumps(item)))
            assert pickle.dumps(row) == pickle.dumps(there)
            assert isinstance(row, Row)


def test_a_held_out_row_is_read_in_any_process(scenes_path: str) -> None:
    split = holdout.read(holdout.Options(data=scenes_path)).splits["val"]
    read = pickle.loads(pickle.dumps(split.read))
    assert pickle.dumps(read(split.items[0])) == pickle.dumps(split.read(split.items[0]))


def test_the_guides_source_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(tmp_path / "photos" / f"{name}.jpg")
    (tmp_path / "photos" / "b.jpg.boxes").write_text("1 2 30 20\n")
    _, code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    exec(code, {})
    assert read_info("data/photos").splits == {"train": {"none": 1, "det": 1}}
