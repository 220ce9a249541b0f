"""What can go wrong while a run trains, and what it does about it."""

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from multas_ray.checkpoint.folder import MODEL, step_folder, verify
from multas_ray.errors import RunError, UserError, root_cause
from multas_ray.run_folder import read_metrics
from multas_ray.storage import StoragePath
from multas_ray.train.run import train
from tests.support.configs import changed
from tests.support.shards import damage_rows


@pytest.fixture
def data(scenes_path, tmp_path) -> Path:
    """A data set of one's own, to be damaged."""
    return Path(shutil.copytree(scenes_path, tmp_path / "data"))


def test_a_diverging_run_ends_with_the_images_of_its_last_bad_step(started_ray, make_config):
    config = make_config(
        optim={"name": "sgd", "lr": 1e12, "warmup_steps": 0, "clip_norm": None},
        train={"run": make_config().train.run, "steps": 50, "batch_size": 4, "max_bad_steps": 2},
    )
    with pytest.raises(Exception, match="not finite in 3 steps") as stop:
        train(config)
    cause = root_cause(stop.value)
    assert isinstance(cause, RunError), "no restart is tried"
    run = Path(config.train.run)
    lines = [json.loads(line) for line in (run / "bad_steps.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert str(cause).endswith(f"the last was step {lines[-1]['step']}, images {', '.join(lines[-1]['images'])}")
    assert len(lines[-1]["images"]) == 4
    assert "RunError: the loss or its gradient was not finite" in (run / "errors.log").read_text()


def test_rows_that_cannot_be_used_are_left_out_counted_and_named(started_ray, make_config, data):
    table = pq.read_table(min((data / "train").glob("*.parquet")))
    boxed, masked = (table[name].to_pylist().index(True, 2) for name in ("has_det", "has_seg"))
    # Of rows that are trained on: those without annotation are of no use here, and lie first.
    files = (boxed + 1, "image", b"no image"), (masked, "mask", b"\x89PNG no mask")
    broken = damage_rows(data, "train", *files, (boxed, "labels", [99] * 7))
    scored = damage_rows(data, "val", (2, "image", b""))
    config = make_config(
        data={"path": str(data), "size": 64, "workers": 1},
        # Three epochs.
        train={"run": make_config().train.run, "steps": 20, "batch_size": 8, "workers": 2, "max_failures": 0},
    )
    train(config)
    run = Path(config.train.run)
    found = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
    assert sorted(line["image_id"] for line in found) == sorted(broken + scored), "each once"
    assert {line["reason"] for line in found} == {"broken image", "broken mask", "lists of different lengths"}
    assert [line for line in read_metrics(run) if "loss/total" in line][-1]["rejected_rows"] == 3
    assert "could not be used and were left out" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_batch_of_nothing_but_broken_rows_is_trained_through(started_ray, make_config, random_teachers, data):
    rows = len(pq.read_table(min((data / "train").glob("*.parquet"))))
    damage_rows(data, "train", *[(row, "image", b"") for row in range(rows) if row % 5])
    config = make_config(
        data={"path": str(data), "size": 64, "workers": 1},
        train={"run": make_config().train.run, "steps": 20, "batch_size": 2, "workers": 2, "max_failures": 0},
        teachers=random_teachers,
    )
    train(config)
    lines = [line for line in read_metrics(Path(config.train.run)) if "loss/total" in line]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["bad_steps"] == 0


@pytest.mark.slow
def test_a_shard_that_vanishes_ends_the_run_with_its_name(started_ray, make_config, data):
    config = make_config(
        data={"path": str(data), "size": 64, "workers": 1},
        train={"run": make_config().train.run, "steps": 4000, "batch_size": 8, "workers": 2},
    )
    shard = min((data / "val").glob("*.parquet"))
    config = changed(config, **{"evaluate.every_steps": 5})

    # Found when the plan is laid, gone when the first evaluation reads it.
    def delete() -> None:
        run = Path(config.train.run)
        while not read_metrics(run):
            pass
        shard.unlink(missing_ok=True)

    thread = threading.Thread(target=delete)
    thread.start()
    with pytest.raises(Exception, match="is gone") as stop:
        train(config)
    thread.join()
    cause = root_cause(stop.value)
    assert isinstance(cause, UserError)
    assert str(cause) == f"{shard}: was there when the run began, and is gone"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncate", "corrupt"])
def test_a_run_goes_back_to_the_checkpoint_before_a_broken_one(started_ray, make_config, damage):
    settings = {"run": make_config().train.run, "steps": 6, "batch_size": 8, "log_every_steps": 1}
    config = make_config(train={**settings, "checkpoint_every_steps": 3})
    train(config)
    run = Path(config.train.run)
    before = read_metrics(run)
    file = Path(step_folder(run, 6) / MODEL)
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content if damage == "corrupt" else content[:-100])
    (run / "result.json").unlink()
    train(config)
    assert f"checkpoint {step_folder(run, 6)} is broken" in (run / "errors.log").read_text()
    curves = [
        [(line["step"], line["loss/total"]) for line in lines if "loss/total" in line]
        for lines in (before, read_metrics(run))
    ]
    assert curves[0] == curves[1], "the same steps once more"
    assert [step for step, _ in curves[1]] == list(range(1, 7))
    assert StoragePath(run / "checkpoints").names() == ["step_00000003", "step_00000006"]


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_older_checkpoints(started_ray, make_config, tmp_path):
    run = tmp_path / "small"
    run.mkdir()
    # Room for some checkpoints.
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=250m", "tmpfs", str(run)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        settings = {"run": str(run), "steps": 40, "batch_size": 8, "checkpoint_every_steps": 3, "keep_checkpoints": 9}
        with pytest.raises(Exception, match="cannot be written") as stop:
            train(make_config(train=settings))
        cause = root_cause(stop.value)
        assert isinstance(cause, RunError)
        assert "No space left on device" in str(cause)
        assert str(cause).endswith("its older checkpoints are intact")
        left = (StoragePath(run) / "checkpoints").names()
        assert 2 <= len(left) < 13, "some fitted"
        for number, name in enumerate(left, start=1):
            assert step_folder(run, 3 * number).name == name, "none is missing"
            assert verify(step_folder(run, 3 * number)) is None, "none is a half"
    finally:
        subprocess.run(["umount", str(run)], check=True)
