"""What a run's folder tells, whatever has happened to its files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from multas_ray.errors import UserError
from multas_ray.report.run_report import run_report
from multas_ray.run_folder import (
    newest_error,
    read_attempts,
    read_metrics,
    read_progress,
    read_result,
    read_workers,
)
from multas_ray.storage import StoragePath

RESULT = {"final": {"score": 2.5}, "best": {"score": 3.5, "step": 4}, "steps": 6, "seconds": 9.5, "checkpoint": "x"}
ATTEMPT = {
    "started": "2026-01-01 00:00:00",
    "from_step": 0,
    "code": {"commit": None, "digest": "d" * 64},
    "precision": "float32",
    "versions": {"ray": "2.60.0"},
    "data": {"train": "a" * 64},
    "teachers": {},
}
RUBBISH = [b"", b"\xff\xfe\n", b"null\n", b"[1]\n", b'"step"\n', b"[" * 100_000, b"9" * 5000, b'{"step": ']


@pytest.fixture
def run(tmp_path: Path) -> StoragePath:
    return StoragePath(tmp_path)


def test_a_result_is_what_was_written(run):
    assert read_result(run) is None
    (run / "result.json").write_text(json.dumps(RESULT))
    assert read_result(run) == RESULT
    assert [type(value) for value in read_result(run)["best"].values()] == [float, int]


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": "six"},
        {"final": [1]},
        {"seconds": float("nan")},
        {"final": {"x": 10**400}},
        {"best": {"step": None}},
        {"checkpoint": 1},
    ],
    ids=str,
)
def test_a_result_that_is_none_is_named(run, changes):
    (run / "result.json").write_text(json.dumps(RESULT | changes))
    with pytest.raises(UserError, match=rf"^{run}/result\.json: {next(iter(changes))}.*; delete it, and the run is"):
        read_result(run)


@pytest.mark.parametrize("content", RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_is_passed_over_and_the_rest_is_told(run, content):
    for name, line, read in (
        ("metrics.jsonl", {"step": 3, "loss/total": 1.5}, lambda: read_metrics(run)),
        ("attempts.jsonl", ATTEMPT, lambda: [each.model_dump() for each in read_attempts(run)]),
        ("workers.jsonl", {"rank": 1, "node": "a"}, lambda: [each.model_dump() for each in read_workers(run)]),
    ):
        whole = json.dumps(line).encode() + b"\n"
        (run / name).write_bytes(whole + content + b"\n" + whole + content)
        assert read() == [line, line], name
    (run / "progress.json").write_bytes(content)
    assert read_progress(run, 0) == {}
    (run / "config.yaml").write_bytes(content)
    page = run_report(run).read_text()
    assert "3 steps so far" in page
    assert "What ran" in page


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ({"step": 1, "loss/total": "high", "det/AP": [1], "lr": True, "seg/mIoU": 2}, {"step": 1, "seg/mIoU": 2}),
        ({"step": 1, "loss/total": float("nan"), "lr": float("inf")}, {"step": 1}),
        ({"step": 1, "loss/total": 10**400, "lr": 1e301}, {"step": 1}),
        ({"step": 10**400, "loss/total": 1.0}, None),
        ({"step": 1, "det/AP/\ud800": 1.0}, None),
        ({"step": 1, "det/AP/\U0001f431": 2.0}, {"step": 1, "det/AP/\U0001f431": 2.0}),
        ({"step": "1"}, None),
        ({"loss/total": 1.0}, None),
    ],
    ids=range(8),
)
def test_metrics_are_numbers_with_a_step(run, line: dict[str, Any], kept: dict[str, Any] | None):
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert read_metrics(run) == ([] if kept is None else [kept])
    run_report(run)


def test_a_report_needs_no_more_than_lines_with_steps(run):
    odd = {"time/step_s": -1, "time/slowest_rank": 0, "time/median_rank_s": 0, "time/slowest_rank_s": 1}
    odd |= {"teacher/det": 1, "teacher/a/b/c": 2, "det/AP/": 3, "loss/": 1e300, "score": 0}
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": step} | odd) + "\n" for step in (1, 2)))
    (run / "config.yaml").write_text("data: [1]\ntrain: 5\nloss:\n")
    assert "not finished; 2 steps so far" in run_report(run).read_text()


@pytest.mark.parametrize("found", [{"step": "1"}, {"starting": 1}, {"step": 1, "x": 2}, [1]], ids=str)
def test_progress_of_another_form_is_none(run, found):
    (run / "progress.json").write_text(json.dumps(found))
    assert read_progress(run, 0) == {}
    (run / "progress.json").write_text('{"step": 7}')
    assert read_progress(run, 0) == {"step": 7}
    os.utime(run / "progress.json", (50, 50))
    assert read_progress(run, 51) == {}


def test_the_newest_error_is_a_line_that_can_be_shown(run):
    (run / "errors.log").write_bytes(b"2026-01-01 00:00:00 first\n2026 \xff\x1b[31m died\nand why\n")
    assert newest_error(run) == "2026 �\\x1b[31m died"
