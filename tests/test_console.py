import io
import json
import os
import re
import time
from pathlib import Path

import pytest
from rich import progress
from rich.console import Console

from multas_ray import console
from multas_ray.checkpoint.folder import MANIFEST, META, MODEL, Meta, step_folder, write_files
from multas_ray.config import ModelConfig
from multas_ray.console import _Run, follow, stopping
from multas_ray.storage import StoragePath
from multas_ray.train.tracking import Progress
from tests.support.configs import changed


@pytest.fixture
def config(make_config):
    """Of a run of 40 steps, whose folder is empty."""
    made = changed(make_config(), **{"train.steps": 40})
    StoragePath(made.train.run).filesystem.create_dir(made.train.run)
    return made


def write(config, name: str, text: str, age: float) -> None:
    file = Path(config.train.run) / name
    file.write_text(text)
    os.utime(file, (time.time() - age,) * 2)


def look(run: _Run) -> tuple[int, str]:
    run.look()
    return run.step, run.news


def test_progress_tells_the_newest_step_losses_and_scores(config):
    run = _Run(config)
    assert look(run) == (0, "")
    lines = [
        {"step": 10, "loss/total": 2.0, "throughput/images_per_s": 30.0},
        {"step": 10, "det/AP50": 41.0, "score": 41.0},
        {"step": 20, "loss/total": 1.5, "throughput/images_per_s": 31.0},
    ]
    write(config, "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines), age=10)
    assert look(run) == (20, "loss 1.500  31.0 img/s  det/AP50 41.0")
    Progress(StoragePath(config.train.run)).step(23, first=True)
    assert look(run) == (23, "loss 1.500  31.0 img/s  det/AP50 41.0"), "steps between two lines of metrics count"


def test_a_restart_is_told_until_the_run_goes_on(config):
    run = _Run(config)
    write(config, "errors.log", "2026-01-01 10:00:00 rank 1: OSError: disk full\nTraceback …\n", age=5)
    assert look(run) == (0, "after an error: 2026-01-01 10:00:00 rank 1: OSError: disk full")
    line = json.dumps({"step": 3, "loss/total": 1.0, "throughput/images_per_s": 9.0})
    write(config, "metrics.jsonl", line + "\n", age=1)
    assert look(run) == (3, "loss 1.000  9.0 img/s")


def test_files_that_are_none_end_nobody_s_looking(config):
    for name in ("metrics.jsonl", "progress.json", "errors.log"):
        (Path(config.train.run) / name).write_bytes(b'\xff\n{"step": null, "loss/total": 1}\n[{"step": 9}]\n')
    assert look(_Run(config)) == (0, "")
    assert stopping(config).startswith("stopping at step 0")


def test_the_remaining_time_is_there_from_the_second_step_on(config, monkeypatch):
    clock = iter([100.0, 103.0])
    run, progress = _Run(config), Progress(StoragePath(config.train.run))
    monkeypatch.setattr(console, "monotonic", lambda: next(clock))
    # It goes on from step 10.
    for step, left in ((11, ""), (13, "0:00:40 left")):
        progress.step(step, first=True)
        run.look()
        run.look()
        assert (run.step, run.left()) == (step, left)


def test_what_an_earlier_job_was_starting_is_not_told(config):
    Progress(StoragePath(config.train.run)).starting("network")
    os.utime(Path(config.train.run) / "progress.json", (time.time() - 60,) * 2)
    assert look(_Run(config)) == (0, "")


def test_steps_are_written_down_at_most_once_a_second(config):
    progress = Progress(StoragePath(config.train.run))
    progress.step(1, first=True)
    began = time.monotonic()
    for step in range(2, 1000):
        progress.step(step)
    if time.monotonic() - began < 1:
        assert json.loads((StoragePath(config.train.run) / "progress.json").read_text()) == {"step": 1}
    progress.written -= 1
    progress.step(1000)
    assert json.loads((StoragePath(config.train.run) / "progress.json").read_text()) == {"step": 1000}


def test_where_the_output_is_no_terminal_each_start_has_its_line_at_once(config, monkeypatch, capsys):
    monkeypatch.setattr(console, "POLL_S", 0.01)
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0.01)
    progress = Progress(StoragePath(config.train.run))
    told = ""

    def wait_for(words: str) -> None:
        nonlocal told
        end = time.monotonic() + 20
        while words not in told:
            assert time.monotonic() < end, told
            time.sleep(0.01)
            told += capsys.readouterr().err

    with follow([config]):
        for what in ("Ray", "network"):
            progress.starting(what)
            wait_for(f"run: starting {what}\n")
        progress.step(1, first=True)
        wait_for("run: step 1/40\n")
        time.sleep(0.01)
        progress.step(3, first=True)
        wait_for("run: step 3/40  0:00:")
    assert told.count("starting Ray") == 1


def test_a_run_that_is_stopped_says_where_it_is_and_from_where_it_goes_on(config):
    run = StoragePath(config.train.run)
    assert stopping(config) == "stopping at step 0; the same command goes on from step 0"
    meta = Meta(step=20, model=ModelConfig(), det_classes=[], seg_classes=[], size=64, metrics={})
    files = {MODEL: b"weights", META: meta.model_dump_json().encode()}
    for step in (20, 30):
        write_files(step_folder(run, step), {n: lambda stream, c=c: stream.write(c) for n, c in files.items()})
    # It was killed before it was whole.
    (step_folder(run, 30) / MANIFEST).delete()
    Progress(run).step(33, first=True)
    assert stopping(config) == "stopping at step 33; the same command goes on from step 20"


def test_a_job_that_counts_tells_its_rate(monkeypatch, capsys):
    monkeypatch.setattr(console, "PLAIN_EVERY_S", -1)
    with console.count_up("images") as advance:
        advance(10, 40)
        advance(30, 40)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["10 of 40 images", "30 of 40 images"]
    assert all(re.fullmatch(r"\d+ of 40 images, \d+\.\d/s", line) for line in lines)


def test_the_bar_of_a_job_has_its_rate():
    now = 0.0
    with progress.Progress(console._Rate(), get_time=lambda: now, console=Console(file=io.StringIO())) as bars:
        bar = bars.add_task("images", total=100)
        for done in (10, 30, 50):
            bars.update(bar, completed=done)
            now += 4
        assert console._Rate().render(bars.tasks[0]).plain == "5.0/s"
