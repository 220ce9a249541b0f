"""Whole runs: Ray Train workers, the stream, the pool, checkpoints, metrics."""

import json
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from multas_ray.checkpoint.folder import find_checkpoint, newest_checkpoint, read_meta
from multas_ray.checkpoint.weights import load_network
from multas_ray.errors import UserError, root_cause
from multas_ray.formats import scenes
from multas_ray.run_folder import read_metrics
from multas_ray.storage import StoragePath
from multas_ray.train.run import train
from tests.support.configs import changed
from tests.support.processes import PATIENCE, named
from tests.support.runs import add_checkpoint, losses, wait_for_step
from tests.support.shared import ROOT
from tests.support.teachers import spoil


def test_a_run_of_two_workers_leaves_what_it_promises(started_ray, make_config):
    config = make_config(train={"run": make_config().train.run, "steps": 4, "batch_size": 7, "workers": 2})
    result = train(config)
    run = Path(config.train.run)
    lines = read_metrics(run)
    logged = [line for line in lines if "loss/total" in line]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert {"epoch", "lr", "loss/det_box", "loss/det_cls", "loss/seg", "throughput/images_per_s"} <= logged[0].keys()
    assert {"time/step_s", "time/data_wait_s", "time/teacher_wait_s"} <= logged[0].keys()
    assert {"time/data_wait_share", "time/teacher_wait_share"} <= logged[0].keys()
    scored = [line for line in lines if "score" in line]
    assert [line["step"] for line in scored] == [4]
    assert scored[0]["score"] == pytest.approx(scored[0]["det/AP"] + scored[0]["seg/mIoU"])
    of_classes = {f"det/AP/{name}" for name in scenes.CLASSES} | {f"seg/IoU/{name}" for name in scenes.CLASSES}
    assert of_classes <= scored[0].keys()
    assert json.loads((run / "result.json").read_text()) == result
    assert result["steps"] == 4
    assert result["final"]["seg/mIoU"] == scored[0]["seg/mIoU"]
    network, meta = load_network(str(run / result["checkpoint"]))
    assert meta.step == 4
    assert network.tasks == ("det", "seg")
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["workers"] == 2
    assert "data:image/png;base64" in (run / "report.html").read_text()
    assert len(list((run / "samples").glob("*.png"))) == 1
    before = (run / "metrics.jsonl").read_bytes()
    assert train(config) == result, "a finished run is not run again"
    assert (run / "metrics.jsonl").read_bytes() == before


def test_pool_and_inline_teachers_give_the_same_losses(started_ray, make_config, random_teachers, tmp_path):
    found = {}
    for placement in ("pool", "inline"):
        run = str(tmp_path / placement)
        config = make_config(
            # Multi-scale, with features of a student that is another network than its teachers.
            data={"size": [96, 64], "multi_scale_until": 0.8},
            model={"preset": "paper", "backbone": "resnet18", "width": 32},
            distill={"det": {"on": "all", "pdf": 1, "defeat": 1}, "seg": {"cwd": 1}},
            train={"run": run, "steps": 5, "batch_size": 8, "log_every_steps": 1, "max_failures": 0},
            teachers={"placement": placement, **random_teachers},
        )
        train(config)
        assert config.model.adapter is None, "the caller's configuration is left alone"
        names = ("loss/total", "loss/kd_det", "loss/kd_seg", "loss/kd_feature")
        found[placement] = [losses(run, name) for name in names]
        assert bool(losses(run, "teacher/seg/latency_s")) == (placement == "pool"), "the pool's figures are logged"
        weights = load_file(find_checkpoint(run) / "model.safetensors")
        network, _ = load_network(run)
        assert weights.keys() == network.state_dict().keys(), "the student's checkpoint holds no teacher"
    torch.testing.assert_close(torch.tensor(found["pool"]), torch.tensor(found["inline"]), rtol=1e-5, atol=0)
    assert all(value > 0 for value in found["pool"][1]), "detection is distilled"
    assert all(value > 0 for value in found["pool"][2]), "segmentation is distilled"
    assert all(value > 0 for value in found["pool"][3]), "features are distilled"


def test_a_network_learns_from_its_own_average_and_from_weak_annotations(started_ray, make_config, tmp_path):
    config = make_config(
        loss={"weak_det": 0.5, "weak_seg": 0.5},
        distill={"start": 0.5},
        teachers={"placement": "ema"},
        train={"run": str(tmp_path / "ema"), "steps": 6, "batch_size": 8, "log_every_steps": 1, "workers": 2},
    )
    train(config)
    run = config.train.run
    for task in ("det", "seg"):
        # A batch of eight may have no row for it.
        assert sum(value > 0 for value in losses(run, f"loss/weak_{task}")) >= 3
        # From half of the training on.
        taught = [value > 0 for value in losses(run, f"loss/kd_{task}")]
        assert taught == [False] * 3 + [True] * 3


def test_a_teacher_that_answers_with_nan_stops_the_run_at_once(started_ray, make_config, random_teachers, tmp_path):
    (tmp_path / "broken").mkdir()
    broken = spoil(random_teachers["seg"]["checkpoint"], tmp_path / "broken")
    config = make_config(teachers={**random_teachers, "seg": {"checkpoint": broken}})
    with pytest.raises(Exception, match="NaN") as stop:
        train(config)
    cause = root_cause(stop.value)
    assert isinstance(cause, UserError), "no restart is tried"
    assert str(cause) == f"teachers.seg.source {broken}: it answers with NaN or infinite values"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"path": "nowhere"}}, "nowhere: no data set here"),
        ({"data": {"val": "test"}}, "no split 'test'"),
        ({"teachers": {"det": {"checkpoint": "nowhere"}}}, "nowhere: no whole checkpoint here"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(make_config, changes, words):
    with pytest.raises(UserError, match=words):
        train(make_config(**changes))


def test_a_loss_of_every_anchor_needs_a_teacher_with_the_same(make_config, random_teachers):
    config = make_config(teachers={"det": random_teachers["det"]}, distill={"det": {"soft_box": 1}})
    config = changed(config, **{"model.anchor_base": 16})
    with pytest.raises(UserError, match=r"it answers with boxes, .*distill\.det\.soft_box compares every anchor alike"):
        train(config)


def test_a_run_folder_that_cannot_be_written_is_refused(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    config = make_config(train={"run": str(tmp_path / "file" / "run"), "steps": 6, "batch_size": 8})
    with pytest.raises(UserError, match=r"train\.run: .*/file/run cannot be written"):
        train(config)


def test_a_run_folder_of_another_network_is_refused(make_config, tmp_path):
    config = make_config()
    run = Path(config.train.run)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config.to_yaml())
    add_checkpoint(config)
    config = changed(config, **{"model.width": 32})
    with pytest.raises(UserError, match=r"another model\.width"):
        train(config)


# --- kills ------------------------------------------------------------------------------------------------------------


def start_job(config, folder: Path) -> subprocess.Popen:
    file = folder / "config.yaml"
    file.write_text(config.to_yaml())
    return subprocess.Popen(
        [sys.executable, "jobs/train.py", "--config", str(file)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_a_killed_job_continues_as_one_curve_and_ends_as_if_unbroken(make_config, tmp_path):
    settings = {"steps": 40, "batch_size": 8, "log_every_steps": 1, "checkpoint_every_steps": 5}
    whole = make_config(train={"run": str(tmp_path / "whole"), **settings})
    broken = make_config(train={"run": str(tmp_path / "broken"), **settings})
    assert start_job(whole, tmp_path).wait(PATIENCE) == 0

    job = start_job(broken, tmp_path)
    wait_for_step(broken.train.run, 18)
    family = psutil.Process(job.pid).children(recursive=True)
    for process in [psutil.Process(job.pid), *family]:
        process.kill()
    job.wait()
    assert not (tmp_path / "broken" / "result.json").exists()
    newest, _ = newest_checkpoint(StoragePath(broken.train.run))
    spent = read_meta(newest).seconds
    assert spent > 2, "Ray's start alone takes longer"
    assert start_job(broken, tmp_path).wait(PATIENCE) == 0
    result = tmp_path / "broken" / "result.json"
    started = json.loads((tmp_path / "broken" / "attempts.jsonl").read_text().splitlines()[-1])["started"]
    own = result.stat().st_mtime - datetime.fromisoformat(started).timestamp()
    assert json.loads(result.read_text())["seconds"] == pytest.approx(spent + own, abs=2)

    steps = [line["step"] for line in read_metrics(Path(broken.train.run)) if "loss/total" in line]
    assert steps == list(range(1, 41))
    assert losses(broken.train.run) == losses(whole.train.run), "same seed, same numbers, also through a kill"
    ends = [load_file(find_checkpoint(config.train.run) / "model.safetensors") for config in (whole, broken)]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.mark.slow
def test_killed_teachers_or_a_killed_worker_do_not_end_the_run(started_ray, make_config, random_teachers, tmp_path):
    steps = {"steps": 60, "log_every_steps": 1, "checkpoint_every_steps": 10}
    config = make_config(
        train={"run": str(tmp_path / "kd"), "batch_size": 8, **steps},
        teachers={**random_teachers, "replicas": 2, "resources": {"cpu": 0.1}},
    )
    killed: list[str] = []

    def kill(name: str, at: int) -> None:
        wait_for_step(config.train.run, at)
        # Of this session's Ray only: other runs of the machine are not ours to kill.
        for process in named(name):
            process.kill()
            killed.append(name)

    def kills() -> None:
        # All replicas of both teachers at once.
        kill("ray::TeacherActor", 12)
        kill("ray::RayTrainWorker", 25)

    thread = threading.Thread(target=kills)
    thread.start()
    result = train(config)
    thread.join()
    # And those of earlier tests, if any are left.
    assert killed.count("ray::TeacherActor") >= 4
    assert killed[-1] == "ray::RayTrainWorker"
    assert result["steps"] == 60
    figures = [line for line in read_metrics(Path(config.train.run)) if "teacher/det/restarts" in line]
    assert figures[-1]["teacher/seg/replicas"] == 2
    assert [line["step"] for line in read_metrics(Path(config.train.run)) if "loss/total" in line] == list(range(1, 61))
