"""jobs/describe.py: its counts, its choice of pictures, and how it refuses what it cannot read."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jobs.describe import main, source_cells
from multas_ray.cli import run_job
from multas_ray.config import TASK_MASKS
from multas_ray.data.describe import choose, count
from multas_ray.data.index import read_index
from multas_ray.data.schema import SCHEMA, DatasetInfo
from tests.support.shared import ROOT

INFO = DatasetInfo(
    name="tiny",
    det_classes=["cat", "dog"],
    seg_classes=["background", "pet"],
    splits={"train": {"det": 6, "seg": 2, "both": 1, "none": 1}},
)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def row(number: int, labels: Sequence[int] | None = None, mask: np.ndarray | None = None) -> dict[str, Any]:
    """A 20 x 30 image with boxes of these labels (the first one difficult) and a mask; None = not annotated."""
    found = labels or []
    return {
        "image_id": f"image{number}",
        "image": png(np.full((20, 30, 3), 10 * number, np.uint8)),
        "height": 20,
        "width": 30,
        "has_det": labels is not None,
        "has_seg": mask is not None,
        "boxes": [[2.0, 2.0, 12.0, 15.0]] * len(found),
        "labels": list(found),
        "difficult": [index == 0 for index in range(len(found))],
        "mask": None if mask is None else png(mask),
    }


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    """A data set of one split in two shards of small row groups."""
    (folder / "train").mkdir(parents=True)
    (folder / "dataset.json").write_text(INFO.model_dump_json())
    for shard, part in enumerate((rows[:3], rows[3:])):
        pq.write_table(pa.Table.from_pylist(part, SCHEMA), folder / "train" / f"{shard}.parquet", row_group_size=2)
    return str(folder)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    half = np.zeros((20, 30), np.uint8)
    half[:, 15:] = 1
    ignored = half.copy()
    ignored[:, 20:] = 255
    rows = [row(0, [0, 1, 1]), *(row(number, []) for number in range(1, 6))]
    rows += [row(6, None, half), row(7, None, np.zeros((20, 30), np.uint8)), row(8, [1], ignored), row(9)]
    return write(tmp_path / "tiny", rows)


def test_counts(dataset: str) -> None:
    seen: list[int] = []
    counts = count(read_index(dataset, "train"), INFO, seen.append)
    assert counts.rows == {"none": 1, "det": 6, "seg": 2, "both": 1}
    assert counts.boxes.tolist() == [1, 3]
    assert counts.difficult.tolist() == [1, 1]
    assert counts.box_images.tolist() == [1, 2]
    assert counts.pixels[[0, 1, 255]].tolist() == [300 + 600 + 300, 300 + 100, 200]
    assert counts.pixel_images[[0, 1, 255]].tolist() == [3, 2, 1]
    assert sum(seen) == 10


def test_choice_covers_every_task_mask_and_is_seeded(dataset: str) -> None:
    index = read_index(dataset, "train")
    chosen = choose(index, 6, seed=0)
    masks = [TASK_MASKS[mask] for mask in index.task_mask(np.array(chosen))]
    assert masks == ["none", "det", "det", "seg", "seg", "both"]
    assert chosen == choose(index, 6, seed=0)
    assert any(chosen != choose(index, 6, seed=seed) for seed in range(1, 5))
    assert sorted(choose(index, 100, seed=0)) == list(range(10)), "no more than there are"


def test_rows_that_break_the_contract_are_counted_and_the_first_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [row(number, [2]) | {"image_id": f"[{number}]"} for number in range(6)]
    path = write(tmp_path / "bad", [row(6, [0]), *bad, row(7) | {"has_seg": True, "mask": b"no image"}])
    monkeypatch.setattr(sys, "argv", ["describe.py", path, "--out", str(tmp_path / "out")])
    main()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    place = lines.index("train: 7 rows break the data contract; a training leaves them out")
    assert lines[place + 1] == "[0]: unknown class (label 2, 2 classes are in dataset.json)"
    assert [line.startswith("[") for line in lines[place + 1 :]] == [True] * 5 + [False]
    with Image.open(tmp_path / "out" / "train.png") as picture:
        assert picture.width < 300, "of the one row that can be shown"


@pytest.mark.long
def test_job_prints_tables_and_writes_pictures(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "jobs" / "describe.py"), dataset, "--out", str(out), "--samples", "5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    for text in ("cat", "dog", "pet", "(ignore)", "22.22%", str(out / "train.png")):
        assert text in done.stdout
    with Image.open(out / "train.png") as picture:
        assert picture.width > 4 * 60


@pytest.mark.parametrize(
    "arguments", [["/nowhere"], [], ["/nowhere", "--samples", "many"], ["/nowhere", "--samples=-1"]]
)
def test_job_refuses_in_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["describe.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_job(main)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_configuration_s_data_sets_are_shown_in_one_label_space(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classes: dict[str, dict[str, str | None]] = {"tiny": {"cat": None}, "masks": {"pet": "cow"}}
    sources = {name: {"path": dataset, "val": "train", "classes": own} for name, own in classes.items()}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"data": {"sources": sources}, "train": {"run": "-", "steps": 1}}, sort_keys=False))
    arguments = ["--config", str(file), "data.sources.masks.classes.dog=null", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["describe.py", *arguments])
    monkeypatch.setenv("COLUMNS", "150")
    main()
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert rows["dog"] == ["3", "", "not looked for", ""]
    assert rows["cat"] == ["not looked for", "", "1", ""]
    assert rows["pet"] == ["", "22.22%", "", "not looked for"]
    assert rows["cow"] == ["", "not looked for", "", "22.22%"]
    assert rows["(images)"] == ["7", "3", "7", "3"]
    assert (tmp_path / "out" / "train.png").exists()
    assert (tmp_path / "out" / "val.png").exists()


def test_what_is_mapped_to_background_is_counted_for_no_class(dataset: str) -> None:
    from multas_ray.config import DataConfig
    from multas_ray.data.index import read_index
    from multas_ray.data.sources import read_sources

    sources = {
        "all": {"path": dataset, "val": "train"},
        "some": {"path": dataset, "val": "train", "classes": {"cat": "background"}},
    }
    read = read_sources(DataConfig.model_validate({"sources": sources, "size": 64}))
    counts = count(read_index(dataset, "train"), read.infos["some"], lambda rows: None)
    whole, cells = (source_cells(read, name, counts)["det"] for name in ("all", "some"))
    assert int(whole["cat"]) > 0
    assert {name: cells[name] for name in cells if name != "cat"} == {n: whole[n] for n in whole if n != "cat"}
