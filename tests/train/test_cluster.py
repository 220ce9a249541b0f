"""Training on clusters: several nodes that come and go, submitted jobs, storage that all nodes reach."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pyarrow import fs
from ray.job_submission import JobStatus, JobSubmissionClient

from multas_ray.checkpoint.weights import load_network
from multas_ray.run_folder import read_metrics
from multas_ray.storage import StoragePath
from tests.support.cluster import end_of, job
from tests.support.processes import PATIENCE
from tests.support.runs import assert_whole_epochs, wait_for_step
from tests.support.shared import ROOT

pytestmark = pytest.mark.slow

STUDENT, TEACHER = {"student_node": 1}, {"teacher_node": 1}


def wait_for_workers(run: Path, number: int, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    file = run / "workers.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) != number:
        assert time.monotonic() < end, f"{run} has not come to {number} workers"
        time.sleep(0.5)


def test_an_elastic_run_grows_and_shrinks_with_the_cluster(cluster, make_config, random_teachers, tmp_path):
    """Students on nodes of their own, teachers on another; a student's node comes, and one goes."""
    cluster.add_node(num_cpus=2, resources=TEACHER)
    first = cluster.add_node(num_cpus=2, resources=STUDENT)
    # Whole CPUs: Ray Train counts the workers that there is room for with them.
    resources = {"cpu": 1, "custom": {"student_node": 1}}
    config = make_config(
        train={
            **{"run": str(tmp_path / "run"), "steps": 900, "batch_size": 8, "log_every_steps": 1},
            **{"checkpoint_every_steps": 20, "workers": [1, 2], "resources": resources, "max_failures": 5},
        },
        teachers={**random_teachers, "resources": {"cpu": 0.1, "custom": {"teacher_node": 0.1}}},
    )
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    run = tmp_path / "run"
    training = job(cluster, "-m", "tests.support.counting", str(file))
    wait_for_step(str(run), 10)
    assert len((run / "workers.jsonl").read_text().splitlines()) == 1
    cluster.add_node(num_cpus=2, resources=STUDENT)
    wait_for_workers(run, 2)
    grown = max(line["step"] for line in read_metrics(run))
    nodes = {json.loads(line)["node_id"] for line in (run / "workers.jsonl").read_text().splitlines()}
    assert len(nodes) == 2, "a worker on each student node"
    wait_for_step(str(run), grown + 30)
    cluster.remove_node(first, allow_graceful=False)
    wait_for_workers(run, 1)
    end_of(training)
    assert_whole_epochs(str(run), 900, rows=50)
    steps = [line["step"] for line in read_metrics(run) if "loss/total" in line]
    assert steps == list(range(1, 901)), "one curve"


@pytest.fixture
def head(monkeypatch):
    """A head that `ray start` has started and that asks for no token: the address of its dashboard."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with started_head(monkeypatch) as address:
        yield address


@pytest.fixture
def locked_head(monkeypatch):
    """One that asks for a token, which RAY_AUTH_TOKEN holds."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with started_head(monkeypatch) as address:
        yield address


@contextmanager
def started_head(monkeypatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    port, dashboard = free_port(), free_port()
    started = subprocess.Popen(
        [
            *("ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=8", "--disable-usage-stats"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"),
            *("--min-worker-port=0", "--max-worker-port=0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{dashboard}"
    end = time.monotonic() + 90
    # In a process of its own: Ray reads the token once a process.
    while subprocess.run(["ray", "job", "list", "--address", address], capture_output=True).returncode != 0:
        assert time.monotonic() < end, started.stdout.read() if started.poll() is not None else "no dashboard"
        time.sleep(0.5)
    try:
        yield address
    finally:
        family = psutil.Process(started.pid).children(recursive=True)
        for process in [*family, psutil.Process(started.pid)]:
            process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def submit(address: str, *arguments: str, checkout: Path = ROOT, wait: bool = True) -> tuple[int, str, str]:
    """Exit code of `ray job submit`, what it printed, and the job's id."""
    options = ["--address", address, "--working-dir", ".", *([] if wait else ["--no-wait"])]
    command = ["ray", "job", "submit", *options, "--", *arguments]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=PATIENCE)
    output = done.stdout + done.stderr
    return done.returncode, output, re.search(r"raysubmit_\w+", output)[0]


def last_line(client: JobSubmissionClient, number: str) -> str:
    return client.get_job_logs(number).strip().splitlines()[-1]


def test_a_submitted_job_trains_is_followed_and_tells_its_exit_code(head, make_config, tmp_path):
    config = make_config(train={"run": str(tmp_path / "run"), "steps": 6, "batch_size": 8, "log_every_steps": 1})
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    code, output, number = submit(head, "python", "jobs/train.py", "--config", str(file))
    assert code == 0, output
    assert f"{tmp_path}/run/report.html" in output, "its output is followed"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 6
    client = JobSubmissionClient(head)
    assert client.get_job_info(number).driver_exit_code == 0

    code, output, number = submit(head, "python", "jobs/train.py", "--config", str(file), "data.path=/nowhere")
    assert code == 1
    assert "error: /nowhere: no data set here" in output, "the command line's"
    assert last_line(client, number).startswith("error: /nowhere: no data set here"), "the job's"
    assert client.get_job_info(number).driver_exit_code == 2
    diverging = ["train.run=" + str(tmp_path / "bad"), "optim.lr=1e12", "train.max_bad_steps=0", "optim.name=sgd"]
    diverging += ["optim.clip_norm=null", "train.steps=30"]
    code, output, number = submit(head, "python", "jobs/train.py", "--config", str(file), *diverging)
    assert code == 1
    assert last_line(client, number).startswith("failed: the loss or its gradient was not finite in 1 steps")
    assert client.get_job_info(number).driver_exit_code == 1


def test_a_submitted_checkout_brings_its_code_and_nothing_else(head, tmp_path):
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    for name in (".venv/lib", "data/animals/train", "runs/kd/checkpoints", "wandb/offline-run", "runs.py"):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "file").write_text("x")
    listing = "import os; print('sent', *sorted(f'{p}/{f}'[2:] for p, _, files in os.walk('.') for f in files))"
    listing += "; from multas_ray.ray_setup import warn_if_passing; from multas_ray.storage import StoragePath"
    listing += "; warn_if_passing('train.run', StoragePath('runs/kd').uri)"
    code, output, _ = submit(head, "python", "-c", listing, checkout=checkout)
    assert code == 0, output
    assert re.search(r"^train.run: /.*/runs/kd goes when the job is over; give", output, re.MULTILINE)
    sent = re.search(r"^sent (.*)$", output, re.MULTILINE)[1].split()
    tracked = subprocess.check_output(["git", "ls-files"], cwd=checkout, text=True).splitlines()
    left = {"tests", "cluster"}
    code_files = {file for file in tracked if file.split("/")[0] not in left}
    assert set(sent) - code_files == {"runs.py/file"}, "what has no name of data, environments or runs is the user's"
    finished = "docs/results/animals/trials/det-0.json"
    assert {"jobs/train.py", "multas_ray/config.py", "pyproject.toml", finished} <= set(sent)


def test_a_cluster_with_a_token_runs_a_clean_checkout_for_those_who_have_it(
    locked_head, make_config, monkeypatch, tmp_path
):
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    (checkout / "config.yaml").write_text(make_config(train={"run": str(tmp_path / "run"), "steps": 6}).to_yaml())
    command = ["python", "jobs/train.py", "--config", "config.yaml"]
    code, output, _ = submit(locked_head, *command, checkout=checkout)
    assert code == 0, output
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 6
    assert os.environ["RAY_AUTH_TOKEN"] not in output
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert not any(os.environ["RAY_AUTH_TOKEN"].encode() in file.read_bytes() for file in files)

    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    refused = subprocess.run(
        ["ray", "job", "submit", "--address", locked_head, "--working-dir", ".", "--", *command],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0
    assert "token authentication is enabled" in refused.stderr
    assert len((tmp_path / "run" / "attempts.jsonl").read_text().splitlines()) == 1


def test_a_stopped_job_leaves_a_checkpoint_that_the_next_goes_on_from(head, make_config, tmp_path):
    run, steps = tmp_path / "run", 400
    train = {"run": str(run), "steps": steps, "batch_size": 8, "log_every_steps": 1, "checkpoint_every_steps": 10}
    file = tmp_path / "config.yaml"
    file.write_text(make_config(train=train, evaluate={"every_steps": 20}).to_yaml())
    code, output, number = submit(head, "python", "jobs/train.py", "--config", str(file), wait=False)
    assert code == 0, output
    wait_for_step(str(run), 25)
    end = time.monotonic() + 60
    while not (run / "report.html").exists():
        assert time.monotonic() < end, "a report while the run goes on"
        time.sleep(0.2)
    assert "not finished" in (run / "report.html").read_text()
    client = JobSubmissionClient(head)
    client.stop_job(number)
    end = time.monotonic() + 60
    while client.get_job_status(number) is not JobStatus.STOPPED:
        assert time.monotonic() < end, client.get_job_status(number)
        time.sleep(0.5)
    reached = max(line["step"] for line in read_metrics(run))
    assert reached < steps
    load_network(StoragePath(run))
    code, output, _ = submit(head, "python", "jobs/train.py", "--config", str(file))
    assert code == 0, output
    # Not what is there when the job has stopped: its worker may still finish the checkpoint that it was writing.
    newest = [json.loads(line)["from_step"] for line in (run / "attempts.jsonl").read_text().splitlines()][-1]
    assert newest % 10 == 0
    assert reached - newest <= 20, "the newest periodic checkpoint, or the one before where it was being written"
    assert [line["step"] for line in read_metrics(run) if "loss/total" in line] == list(range(1, steps + 1))
    assert f"step {newest}" in output, "it says where it goes on"


def test_data_teachers_runs_and_stores_live_in_a_bucket(bucket, make_config, random_teachers, scenes_path, tmp_path):
    def upload(folder: str, name: str) -> str:
        target = StoragePath(bucket.format(name))
        fs.copy_files(folder, target.path, destination_filesystem=target.filesystem)
        return bucket.format(name)

    teachers = {task: {"checkpoint": upload(spec["checkpoint"], task)} for task, spec in random_teachers.items()}
    run = bucket.format("runs/kd")
    config = make_config(
        data={"path": upload(scenes_path, "data"), "size": 64, "workers": 1},
        train={
            **{"run": run, "steps": 40, "batch_size": 8, "log_every_steps": 1, "checkpoint_every_steps": 5},
            "workers": 2,
        },
        evaluate={"every_steps": 20},
        teachers={**teachers, "store": bucket.format("targets")},
    )
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())

    def start(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    training = start("jobs/train.py", "--config", str(file))
    end = time.monotonic() + 400
    folder = StoragePath(run)
    while "step_00000010" not in (folder / "checkpoints").names():
        assert training.poll() is None, training.stdout.read().decode()
        assert time.monotonic() < end
        time.sleep(0.3)
    family = psutil.Process(training.pid).children(recursive=True)
    for process in [psutil.Process(training.pid), *family]:
        process.kill()
    # The newest is half there, as if the kill had met its upload.
    newest = folder / "checkpoints" / (folder / "checkpoints").names()[-1]
    if (newest / "state.pt").exists():
        state = (newest / "state.pt").read_bytes()
        (newest / "state.pt").write_bytes(state[: len(state) // 2])

    training = start("jobs/train.py", "--config", str(file))
    output = training.communicate(timeout=PATIENCE)[0].decode()
    assert training.returncode == 0, output
    lines = read_metrics(folder)
    assert [line["step"] for line in lines if "loss/total" in line] == list(range(1, 41)), "one curve"
    assert "is broken" in (folder / "errors.log").read_text()
    assert "data:image/png;base64" in (folder / "report.html").read_text()
    assert load_network(run)[1].step in (20, 40)
    assert "endpoint" not in output, "URIs are shown without their query"

    filling = start("jobs/precompute.py", "--config", str(file), "--views", "1")
    output = filling.communicate(timeout=PATIENCE)[0].decode()
    assert filling.returncode == 0, output
    stored = start(
        *("jobs/train.py", "--config", str(file), "teachers.placement=stored", f"train.run={bucket.format('runs/st')}"),
        "train.steps=6",
    )
    output = stored.communicate(timeout=PATIENCE)[0].decode()
    assert stored.returncode == 0, output
