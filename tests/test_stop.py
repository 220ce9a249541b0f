"""Ctrl-C and SIGTERM, sent to real jobs."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from multas_ray.cli import hide_ray_log
from multas_ray.run_folder import PROGRESS
from tests.support.configs import changed
from tests.support.processes import PATIENCE, named
from tests.support.shared import ROOT

OWN = re.compile(
    r"(run|run-\d|det|seg): (starting|step \d+/) ?.*|.*: goes on from step \d+|\d+ trials, .*"
    r"|\d+ of \d+ images|stopping.*"
)
"""Lines of jobs that are stopped."""


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(job: subprocess.Popen, condition) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert job.poll() is None, job.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.1)


def stop(job: subprocess.Popen, signum: signal.Signals) -> list[str]:
    """Send a signal; the lines of a job that ended as it should."""
    family = named("", job.pid)
    job.send_signal(signum)
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 128 + signum, output
    assert all(map(OWN.fullmatch, output.splitlines())), output
    end = time.monotonic() + 5
    # Whoever takes care of orphans may still have to do so.
    while any(map(alive, family)) and time.monotonic() < end:
        time.sleep(0.1)
    assert [process for process in family if alive(process)] == []
    return output.splitlines()


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def train(make_config, tmp_path):
    """Starts a training that takes long."""
    config = changed(make_config(), **{"train.steps": 100000, "train.checkpoint_every_steps": 3})
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    return lambda: start("jobs/train.py", "--config", str(file))


def progress(tmp_path: Path) -> dict:
    with contextlib.suppress(OSError):
        return json.loads((tmp_path / "run" / PROGRESS).read_text())
    return {}


@pytest.mark.slow
def test_a_training_that_is_stopped_goes_on_from_where_it_said(train, tmp_path):
    job = train()
    wait_for(job, lambda: progress(tmp_path).get("step", 0) >= 4)
    told = stop(job, signal.SIGINT)[-1]
    match = re.fullmatch(r"stopping at step (\d+); the same command goes on from step (\d+)", told)
    assert match, told
    at, kept = map(int, match.groups())
    assert 3 <= kept <= at
    job = train()
    wait_for(job, lambda: progress(tmp_path).get("starting") == "workers")
    told = stop(job, signal.SIGTERM)
    assert f"{tmp_path / 'run'}: goes on from step {kept}" in told
    assert told[-1].endswith(f"; the same command goes on from step {kept}")


@pytest.mark.ray
@pytest.mark.parametrize("what", ["nothing", "Ray"])
def test_a_job_is_stopped_while_it_starts(train, tmp_path, what):
    job = train()
    if what == "Ray":
        wait_for(job, lambda: named("gcs_server", job.pid))
    else:
        wait_for(job, lambda: named("grep", job.pid))
    assert stop(job, signal.SIGTERM)[-1].startswith("stopping")


STUBBORN = """
import time
from multas_ray.cli import run_job
from multas_ray.stop import on_stop

def main():
    on_stop(lambda: time.sleep(100) or "")
    print("ready", flush=True)
    time.sleep(100)

run_job(main)
"""


def test_an_answer_that_cannot_be_found_out_is_not_waited_for():
    job = start("-c", STUBBORN)
    assert job.stdout.readline() == "ready\n"
    assert stop(job, signal.SIGINT) == ["stopping"]


CHILD = """
import signal, subprocess, sys, time
from multas_ray.cli import run_job

def main():
    child = subprocess.Popen(["sleep", "100"], preexec_fn=lambda: None)
    child.terminate()
    print(child.wait(), flush=True)

run_job(main)
"""


def test_processes_that_a_job_starts_can_be_ended():
    assert subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True).stdout == "-15\n"


NOISY = """
import os, sys
from multas_ray.cli import run_job

def main():
    os.write(2, b"[2026-11-28 22:20:26,889 E 10861 10861] core_worker.cc:2465: Actor with class name\\n")
    os.write(2, b"[2026-11-28 22:20:26,889 C 10861 10861] core_worker.cc:99: Check failed\\n")
    os.write(2, b"malloc(): corrupted\\n")
    print("own", file=sys.stderr)
    os.abort()

run_job(main)
"""


def test_of_native_code_s_errors_only_those_of_rays_log_that_are_not_fatal_are_hidden():
    noisy = subprocess.run([sys.executable, "-c", NOISY], cwd=ROOT, capture_output=True, text=True)
    assert noisy.returncode == -signal.SIGABRT
    assert sorted(noisy.stderr.splitlines()) == [
        "[2026-11-28 22:20:26,889 C 10861 10861] core_worker.cc:99: Check failed",
        "malloc(): corrupted",
        "own",
    ]


def test_a_test_s_standard_error_is_left_alone():
    before = sys.stderr
    hide_ray_log()
    assert sys.stderr is before


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_job_at_once(signum):
    job = start("-c", STUBBORN)
    assert job.stdout.readline() == "ready\n"
    job.send_signal(signum)
    time.sleep(0.1)
    assert stop(job, signum) == []


@pytest.mark.slow
def test_jobs_with_ray_data_or_tune_are_stopped(make_config, random_teachers, scenes_path, tmp_path):
    config = changed(make_config(), **{"train.steps": 100000})
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    search = ["--config", str(file), "--search", "optim.lr=loguniform(1e-4,1e-2)", "--scheduler", "none"]
    study = tmp_path / "study.yaml"
    base = config.model_dump(mode="json")
    tree = {"name": "s", "runs": str(tmp_path / "runs"), "results": str(tmp_path / "results"), "base": base}
    study.write_text(json.dumps(tree | {"arms": {"run": {}}}))
    network = ["--checkpoint", random_teachers["det"]["checkpoint"], "--out", str(tmp_path / "out")]
    goes_on = "stopping; the same command goes on from here"
    for line, process, *command in (
        (goes_on, "ray::RayTrainWorker", "jobs/sweep.py", *search, "--out", str(tmp_path / "sweep")),
        (goes_on, "ray::RayTrainWorker", "jobs/study.py", "--config", str(study)),
        ("stopping", "ray::MapWorker", "jobs/predict.py", *network, "--images", scenes_path),
        ("stopping", "ray::RayTrainWorker", "jobs/demo.py", "--out", str(tmp_path / "demo")),
    ):
        job = start(*command)
        wait_for(job, lambda job=job, process=process: named(process, job.pid))
        assert stop(job, signal.SIGINT)[-1] == line
