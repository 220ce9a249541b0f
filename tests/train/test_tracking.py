import json
import re
from pathlib import Path

import pytest
import torch

from multas_ray.report.overlays import Samples
from multas_ray.report.pictures import Palette, Picture
from multas_ray.run_folder import METRICS, WANDB_ID, read_metrics
from multas_ray.storage import StoragePath
from multas_ray.train.tracking import RunTracker, start_wandb, wandb_id
from tests.support.wandb_file import finished_records

ATTEMPT = {"from_step": 0, "code": {"commit": "0" * 40, "digest": "1" * 64}}


def steps_of(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run)]


def test_a_resumed_run_writes_one_curve(make_config, tmp_path):
    config = make_config()
    with RunTracker(StoragePath(tmp_path), config, 0, ATTEMPT) as tracker:
        for step in (1, 2, 3, 4):
            tracker.log(step, {"loss/total": float(step)})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "loss/to')
    assert steps_of(tmp_path) == [1, 2, 3, 4], "a line that a kill cut short is left out"
    with RunTracker(StoragePath(tmp_path), config, 2, ATTEMPT) as tracker:
        tracker.log(3, {"loss/total": 30.0})
    assert steps_of(tmp_path) == [1, 2, 3]
    assert read_metrics(tmp_path)[-1]["loss/total"] == 30.0
    assert not (tmp_path / "wandb_id").exists(), "W&B is disabled"


def test_lines_that_are_none_do_not_end_a_resumed_run(make_config, tmp_path):
    lines = '{"step": 1}\n[]\n{"step": "2"}\n{"loss/total": 1.0}\nnull\n'
    (tmp_path / METRICS).write_bytes(lines.encode() + b"\xff\n")
    (tmp_path / "bad_steps.jsonl").write_text('{"images": []}\n{"step": 1, "images": ["a"]}\n')
    (tmp_path / "rejected.jsonl").write_text('{"image_id": ["a"]}\n5\n{"image_id": "a", "reason": "", "detail": ""}\n')
    with RunTracker(StoragePath(tmp_path), make_config(), 1, ATTEMPT) as tracker:
        assert tracker.rejected.keys() == {"a"}
        tracker.log(2, {"loss/total": 2.0})
    assert (tmp_path / METRICS).read_text() == '{"step": 1}\n{"step": 2, "loss/total": 2.0}\n'
    assert (tmp_path / "bad_steps.jsonl").read_text() == '{"step": 1, "images": ["a"]}\n'


@pytest.mark.parametrize("content", [b"", b"\xff", b"two words", b"n" * 65])
def test_what_is_no_id_of_wandb_is_replaced(tmp_path, content):
    (tmp_path / WANDB_ID).write_bytes(content)
    made = wandb_id(StoragePath(tmp_path))
    assert re.fullmatch(r"[0-9a-f]{8}", made)
    assert wandb_id(StoragePath(tmp_path)) == made


def test_wandb_is_not_left_on_a_node_of_a_run_in_a_bucket(make_config, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(StoragePath, "local", False)
    assert start_wandb(StoragePath(tmp_path), make_config(tracking={"wandb": "auto"}).tracking, {}) is None
    assert not list(tmp_path.iterdir())


def test_wandb_offline_keeps_config_metrics_pictures_and_one_id(make_config, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    # Restored after the test, which sets it.
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    monkeypatch.delenv("WANDB_DATA_DIR")
    config = make_config(tracking={"wandb": "auto", "group": "tests"}, train={"run": str(tmp_path), "steps": 9})
    pictures = [Picture(torch.zeros(3, 4, 4, dtype=torch.uint8))] * 2
    samples = Samples(Palette(["cat"], ["background", "cat"]), ["a.jpg"], [pictures])
    for start in (0, 2):
        with RunTracker(StoragePath(tmp_path), config, start, ATTEMPT) as tracker:
            tracker.log(start + 1, {"loss/total": 0.5, "seg/IoU/cat": 40.0, "time/teacher_wait_share": 0.25})
            tracker.samples(start + 1, lambda: samples)
            tracker.table("final", {"seg/mIoU": 55.0})
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2, "one offline folder an attempt"
    identity = (tmp_path / "wandb_id").read_text()
    for file in files:
        assert identity in file.name, "both are the same W&B run"
    records = [finished_records(file) for file in files]
    runs = [next(r.run for r in found if r.WhichOneof("record_type") == "run") for found in records]
    assert {(run.run_id, run.run_group) for run in runs} == {(identity, "tests")}
    saved = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert saved["train"]["steps"] == 9
    assert saved["ran"] == ATTEMPT
    history = [
        {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for found in records
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["step"] for row in history if "loss/total" in row] == [1, 3]
    # W&B has all that metrics.jsonl has.
    of_step = {row["step"]: row for row in history if "loss/total" in row}
    lines = read_metrics(tmp_path)
    assert len(lines) == 2
    for line in lines:
        assert {key: of_step[line["step"]][key] for key in line} == line
    logged = {key.split(".")[0] for row in history for key in row}
    assert {"samples", "final"} <= logged
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2, "one an evaluation"
    for found in records:
        # With its pictures, a table is an artifact.
        (artifact,) = [r.artifact for r in found if r.artifact.name == f"run-{identity}-samples"]
        staged = {Path(content.path).suffix: Path(content.local_path) for content in artifact.manifest.contents}
        assert staged[".png"].is_relative_to(tmp_path), "on the run's storage, where `wandb sync` finds them later"
        table = json.loads(staged[".json"].read_text())
        assert table["columns"] == ["image", "ground truth", "prediction"]
        ((name, *pictures),) = table["data"]
        assert name == "a.jpg"
        assert [(picture["width"], picture["_type"]) for picture in pictures] == [(4, "image-file")] * 2
