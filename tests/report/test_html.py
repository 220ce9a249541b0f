"""The report: complete, self-contained and inert, from a whole run or from what there is of one."""

import json
import re
from pathlib import Path

import pytest
import torch

from multas_ray.config_file import parse_config
from multas_ray.report.html import Page
from multas_ray.report.pictures import Palette, Picture, grid
from multas_ray.report.run_report import run_report

CLASSES = ["cat", "dog", "<script>alert(1)</script>"]
BLACK = Picture(torch.zeros(3, 8, 8, dtype=torch.uint8))
PNG = b"\x89PNG\r\n\x1a\n"
LINKS = re.compile(r"""(?:src|href)\s*=\s*["'](?!data:)|@import|url\(|<script""", re.IGNORECASE)


def metrics(offset: float) -> dict[str, float]:
    return {
        "det/AP": 20 + offset,
        "det/AP50": 40 + offset,
        "seg/mIoU": 50 + offset,
        "score": 70 + 2 * offset,
        **{f"det/AP/{name}": 20 + offset for name in CLASSES},
        **{f"seg/IoU/{name}": 50 + offset for name in ["background", *CLASSES]},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "kd & co"
    (folder / "samples").mkdir(parents=True)
    steps = [
        {"step": step, "epoch": 0.1, "lr": 1e-3, "loss/total": 3.0, "loss/seg": 1.0}
        | {"time/step_s": 2.0, "time/data_wait_s": 0.1, "time/teacher_wait_s": 0.5}
        | {"teacher/det/queue": step / 5, "teacher/seg/restarts": 7}
        for step in (10, 20)
    ]
    lines = [steps[0], {"step": 10} | metrics(1.5), steps[1], {"step": 20} | metrics(0.0)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "final": metrics(0.0),
        "best": metrics(1.5) | {"step": 10},
        "steps": 20,
        "seconds": 65.0,
        "checkpoint": "checkpoints/best",
    }
    (folder / "result.json").write_text(json.dumps(result))
    settings = {
        "data": {"path": "data/<b>", "size": [96, 64]},
        "distill": {"seg": {"weight": 2}},
        "teachers": {"det": {"checkpoint": "runs/det"}, "resources": {"labels": {"role": "teacher"}}},
        "train": {"run": "runs/kd", "steps": 20, "workers": 1},
    }
    (folder / "config.yaml").write_text(parse_config(settings).to_yaml())
    for step in (10, 20):
        (folder / "samples" / f"step_{step}.png").write_bytes(grid([[BLACK]], [], Palette([], [])))
    return folder


def test_a_run_has_everything_and_needs_no_network(run: Path) -> None:
    page = run_report(run).read_text()
    assert str(run_report(run)) == str(run / "report.html")
    assert not LINKS.search(page)
    for name in ("background", "cat", "dog", "&lt;script&gt;alert(1)&lt;/script&gt;"):
        assert f"<td>{name}</td>" in page
    assert "21.50" in page, "the best det/AP"
    assert "1 min 5 s" in page
    assert "<td>5.0%</td>" in page, "waiting for data"
    assert "<td>25.0%</td>" in page, "waiting for teachers"
    assert "<th>teacher</th><th>queue</th><th>restarts</th>" in page
    assert "<td>det</td><td>4.00</td>" in page, "the pool's newest figures"
    assert "step_20" in page
    assert "step_10" not in page, "only the newest samples"
    assert page.count('src="data:image/png;base64,') == 3
    assert "run: runs/kd" in page, "the whole configuration"
    changed = re.findall("<td>([a-z_]+[.][a-z_.]+)</td><td>(.*?)</td><td>(.*?)</td>", page)
    assert changed == [
        ("data.path", "data/&lt;b&gt;", "null"),
        ("data.size", "[96, 64]", "320"),
        ("model.levels", "4", "null"),
        ("distill.seg.weight", "2.0", "1.0"),
        ("teachers.det.source", "runs/det", ""),
        ("teachers.resources.labels", "{role: teacher}", "{}"),
        ("train.run", "runs/kd", ""),
        ("train.steps", "20", ""),
    ]
    assert "kd &amp; co" in page


def test_a_run_that_is_not_over_shows_its_newest_evaluation(run: Path) -> None:
    (run / "result.json").unlink()
    page = run_report(run).read_text()
    assert "20 steps so far" in page
    assert "<th>newest</th>" in page


def test_a_run_that_left_nothing(tmp_path: Path) -> None:
    assert "not started" in run_report(tmp_path).read_text()


def test_text_is_escaped_everywhere() -> None:
    evil = "<script>x</script>\"'\x1b[31mred\x85"
    page = Page(
        evil,
        evil,
        {evil: [{evil: evil}, {"other": 1.23456}]},
        {evil: PNG},
        {evil: PNG},
        {evil: evil},
    ).html()
    assert "<script" not in page
    assert "\\x1b[31mred" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    assert "1.23<" in page
