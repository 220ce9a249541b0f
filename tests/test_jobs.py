"""Jobs as they are called: arguments in, exit code and last line out."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from multas_ray import ray_setup
from multas_ray.cli import FAILED, OK, UNUSABLE, run_job
from multas_ray.errors import UserError, root_cause
from multas_ray.ray_setup import QUIET_DAEMONS, start_ray, started_late
from tests.support.jobs import call
from tests.support.shared import ROOT


@pytest.fixture
def config_file(make_config, tmp_path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(make_config().to_yaml())
    return file


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.widht=8", "model.widht: no such key"),
        ("model.width=8", "model.width: Input should be greater than or equal to 16 (given: 8)"),
        ("data.path=nowhere", "nowhere: no data set here"),
        ("data.train=test", "no split 'test'; it has train, val"),
        ("teachers.det.checkpoint=nowhere", "nowhere: no whole checkpoint here"),
    ],
)
def test_train_refuses_what_it_cannot_use_in_one_line(monkeypatch, capsys, config_file, override, words):
    code, lines = call(monkeypatch, capsys, "train.py", "--config", str(config_file), override)
    assert code == UNUSABLE
    assert len(lines) == 1
    assert words in lines[0]


def test_a_shared_pool_needs_a_name_and_a_teacher(monkeypatch, capsys, config_file):
    code, lines = call(monkeypatch, capsys, "teachers.py", "start", "--config", str(config_file))
    assert (code, lines) == (UNUSABLE, ["error: teachers.pool: not set; a shared pool needs a name"])
    named = [str(config_file), "teachers.pool=animals"]
    code, lines = call(monkeypatch, capsys, "teachers.py", "start", "--config", *named)
    assert code == UNUSABLE
    assert "no teacher of a task that is distilled" in lines[0]


@pytest.mark.parametrize(
    ("job", "arguments", "words"),
    [
        ("train.py", [], "--config"),
        ("train.py", ["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file"),
        ("prepare.py", ["scenes", "--train", "many", "--out", "x"], "many"),
        ("prepare.py", ["voc", "--root", ".", "--out", "x"], "at least one of"),
        ("prepare.py", [], "source"),
        ("describe.py", ["nowhere"], "nowhere: no data set here"),
        ("precompute.py", ["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file"),
        (
            "precompute.py",
            ["--config", "nowhere.yaml", "--views", "0"],
            "--views: 0: a whole number from 1",
        ),
        ("evaluate.py", ["--checkpoint", "nowhere", "--data", "x", "--out", "y"], "nowhere"),
        ("predict.py", ["--checkpoint", "nowhere", "--images", "x", "--out", "y"], "nowhere"),
        ("export.py", ["--checkpoint", "nowhere", "--out", "y"], "nowhere"),
        (
            "sweep.py",
            ["--config", "nowhere.yaml", "--search", "a=choice(1)"],
            "nowhere.yaml: cannot be read (No such file",
        ),
        ("study.py", ["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file"),
        ("demo.py", ["--pictures"], "--pictures"),
        ("teachers.py", ["status"], "RAY_ADDRESS: not set"),
        ("teachers.py", ["stop", "animals"], "RAY_ADDRESS: not set"),
        ("benchmark.py", ["nothing"], "nothing"),
        ("benchmark.py", ["loss", "train.workers=2"], "train.workers=2"),
    ],
)
def test_unusable_arguments_end_with_2_and_one_line(monkeypatch, capsys, job, arguments, words):
    code, lines = call(monkeypatch, capsys, job, *arguments)
    assert code == UNUSABLE
    assert len(lines) == 1
    assert words in lines[0]


JOBS = sorted(file.name for file in (ROOT / "jobs").glob("*.py"))


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [*(([job, "--help"], OK) for job in JOBS), *(([job, "--no-such-flag"], UNUSABLE) for job in JOBS)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_line_is_parsed_before_anything_heavy_is_imported(arguments, ending):
    code, imported, lines = import_times(*arguments)
    assert code == ending
    assert imported.isdisjoint({"torch", "ray", "matplotlib"})
    assert len(lines) == (ending == UNUSABLE)


def test_a_wrong_configuration_is_found_before_anything_heavy_is_imported(config_file):
    code, imported, lines = import_times("train.py", "--config", str(config_file), "model.widht=8")
    assert code == UNUSABLE
    assert imported.isdisjoint({"torch", "ray"})
    assert "model.widht: no such key" in lines[0]


def import_times(job: str, *arguments: str) -> tuple[int, set[str], list[str]]:
    """Of a job: its exit code, the modules that it imported, and what else it wrote to standard error."""
    command = [sys.executable, "-X", "importtime", f"jobs/{job}", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = ran.stderr.splitlines()
    imported = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time:")}
    assert "multas_ray.cli" in imported
    return ran.returncode, imported, [line for line in lines if not line.startswith("import time:")]


def ending_of(main, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        run_job(main)
    return stop.value.code, capsys.readouterr().err.strip().splitlines()[-1]


def test_a_failure_ends_with_1_and_its_reason_as_last_line(capsys):
    def main() -> None:
        raise RuntimeError("the disk is gone\nand more")

    assert ending_of(main, capsys) == (FAILED, "failed: RuntimeError: the disk is gone")


def test_a_worker_s_user_error_is_the_user_s(capsys):
    class Wrapped(Exception):
        worker_failures = {0: UserError("teachers.det: gone")}  # noqa: RUF012

    def main() -> None:
        raise Wrapped("Training failed")

    assert ending_of(main, capsys) == (UNUSABLE, "error: teachers.det: gone")
    assert isinstance(root_cause(Wrapped()), UserError)


def test_done_is_0(monkeypatch, capsys, tmp_path):
    out = str(tmp_path / "scenes")
    code, _ = call(
        monkeypatch, capsys, "prepare.py", "scenes", "--train", "6", "--val", "2", "--size", "64", "--out", out
    )
    assert code == OK
    code, _ = call(monkeypatch, capsys, "describe.py", out, "--out", str(tmp_path / "pictures"))
    assert code == OK
    assert yaml.safe_load((tmp_path / "scenes" / "dataset.json").read_text())["splits"]["train"]["both"] == 6


TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed"


@pytest.fixture
def starts(monkeypatch):
    """What each start of a local Ray is to raise, None for nothing; starts that there were are taken off."""
    planned: list[Exception | None] = []

    def start(settings: dict) -> None:
        error = planned.pop(0)
        if error is None:
            return
        if started_late(error):
            left_over.append(subprocess.Popen(["sleep", "100"]))
        raise error

    left_over: list[subprocess.Popen] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_setup, "_start_local", start)
    monkeypatch.setattr(ray_setup.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_setup.ray, "shutdown", lambda: None)
    yield planned
    # Each start's processes are ended before the next.
    assert [process.wait(5) for process in left_over] == [-signal.SIGKILL] * len(left_over)


def test_a_ray_that_does_not_start_in_time_is_started_again(starts, capsys):
    starts += [Exception(TIMED_OUT), RuntimeError("Failed to start GCS.  Last 0 lines of error files:\n"), None]
    start_ray()
    assert starts == []
    assert capsys.readouterr().err == "Ray did not start in time (machine busy?): trying again\n" * 2


def test_a_ray_that_never_starts_ends_the_job_in_one_line(starts, capsys):
    starts += [ConnectionError("no GCS"), ray.exceptions.RpcError("late"), Exception(f"{TIMED_OUT}\nand more"), None]
    code, last = ending_of(start_ray, capsys)
    assert (code, last) == (FAILED, f"failed: Ray did not start in 3 attempts ({TIMED_OUT})")
    assert starts == [None]


@pytest.mark.parametrize("error", [ValueError("object_store_memory"), PermissionError("/tmp/ray")])
def test_what_no_other_start_would_help_is_not_tried_again(starts, error):
    starts += [error, None]
    with pytest.raises(type(error)):
        start_ray()
    assert starts == [None]


ASK = """
import ray
from ray.util.state import get_actor
from multas_ray.ray_setup import on_cluster, start_ray

@ray.remote(num_cpus=0)
class Actor:
    def own_id(self):
        return ray.get_runtime_context().get_actor_id()

    def state_of(self, actor_id):
        return get_actor(actor_id, timeout=10).state, on_cluster()

start_ray()
one, other = Actor.remote(), Actor.remote()
print(*ray.get(one.state_of.remote(ray.get(other.own_id.remote()))), on_cluster())
"""


def test_processes_of_a_local_ray_find_it_beside_another(started_ray):
    """Ray's own, which frees the placement groups of stopped trials, asks for actors without naming a cluster."""
    asked = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert asked.stdout.split() == ["ALIVE", "False", "False"], asked.stderr


READ_BACK = """
from ray._private import log_monitor
from ray.dashboard.modules.event import event_consts
from ray.dashboard.modules.reporter import reporter_consts
from multas_ray.ray_setup import QUIET_DAEMONS, start_ray, started_late

for name, value in QUIET_DAEMONS.items():
    read = [getattr(module, name) for module in (log_monitor, event_consts, reporter_consts) if hasattr(module, name)]
    assert read == [float(value)], f"{name}: {read}"
"""


def test_rays_daemons_read_the_settings_that_keep_them_quiet():
    environment = os.environ | QUIET_DAEMONS
    asked = subprocess.run(
        [sys.executable, "-c", READ_BACK], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert asked.returncode == 0, asked.stderr


SETTLE = """
import os, ray
from time import monotonic, sleep
from multas_ray.ray_setup import QUIET_DAEMONS, data_tasks, start_ray
from tests.support.processes import named

@ray.remote
def work() -> dict[str, str]:
    sleep(1)
    return dict(os.environ)

def without_work() -> int:
    return len(named("ray::IDLE"))

start_ray()
environment, *_ = ray.get([work.remote() for _ in range(4)])
assert environment["MALLOC_ARENA_MAX"] == "1"
assert QUIET_DAEMONS.items() <= environment.items()
assert without_work() > data_tasks()
end = monotonic() + 60
while without_work() > data_tasks() and monotonic() < end:
    sleep(0.2)
sleep(2)
print(without_work() - data_tasks())
"""


@pytest.mark.ray
def test_a_local_ray_keeps_no_more_processes_without_work_than_there_are_data_tasks():
    settled = subprocess.run([sys.executable, "-c", SETTLE], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert settled.stdout.split() == ["0"], settled.stderr
