"""What a run folder may be resumed with, and when it starts afresh."""

import json
from pathlib import Path

import pytest

from multas_ray.config_file import load_config
from multas_ray.errors import UserError
from multas_ray.storage import StoragePath
from multas_ray.train.resume import prepare_folder
from tests.support.configs import changed
from tests.support.runs import add_checkpoint


def test_what_changes_no_step_may_change_when_a_run_goes_on(make_config):
    config = make_config(train={"run": make_config().train.run, "steps": 6, "batch_size": 8, "workers": 1})
    prepare_folder(StoragePath(config.train.run), config)
    add_checkpoint(config)
    config = changed(config, **{"train.workers": 2, "train.steps": 9, "evaluate.batch_size": 7})
    assert prepare_folder(StoragePath(config.train.run), config) is None
    config = changed(config, **{"teachers.placement": "inline"})
    assert prepare_folder(StoragePath(config.train.run), config) is None
    config = changed(config, **{"teachers.placement": "stored", "teachers.store": "store"})
    with pytest.raises(UserError, match=r"another teachers\.placement"):
        prepare_folder(StoragePath(config.train.run), config)
    config = changed(config, **{"teachers.placement": "pool", "data.augment.flip": 0.0})
    with pytest.raises(UserError, match=r"another data\.augment\.flip"):
        prepare_folder(StoragePath(config.train.run), config)


def test_a_run_without_a_checkpoint_begins_anew_with_other_settings(make_config, tmp_path, capsys):
    config = make_config(train={"run": str(tmp_path / "run"), "steps": 2, "batch_size": 8, "log_every_steps": 1})
    run = Path(config.train.run)
    assert prepare_folder(StoragePath(run), config) is None
    # What a start that dies leaves, and what is not its.
    (run / "samples").mkdir()
    for name in ("metrics.jsonl", "bad_steps.jsonl"):
        (run / name).write_text('{"step": 0, "loss/total": 99.0}\n')
    (run / "rejected.jsonl").write_text('{"image_id": "of other data", "reason": "cannot be decoded", "detail": ""}\n')
    (run / "attempts.jsonl").write_text('{"started": "before"}\n')
    kept = {"notes.txt": "mine", "samples/poster.png": "mine", "errors.log": "2024-01-01 00:00:00 it died\n"}
    for name, text in {**kept, "samples/00000001.png": "old", "wandb_id": "old", "report.html": "old"}.items():
        (run / name).write_text(text)
    assert prepare_folder(StoragePath(run), config) is None
    assert (run / "samples" / "00000001.png").exists(), "with the same settings it only goes on"
    assert "anew" not in capsys.readouterr().out

    config = changed(config, **{"optim.lr": 0.0001})
    assert prepare_folder(StoragePath(run), config) is None
    assert f"{run}: begins anew, with another optim.lr" in capsys.readouterr().out
    assert load_config(run / "config.yaml").optim.lr == 0.0001
    assert {name: (run / name).read_text() for name in kept} == kept
    assert (run / "attempts.jsonl").read_text() == '{"started": "before"}\n'
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert left == {*kept, "attempts.jsonl", "config.yaml"}


def test_a_run_whose_checkpoints_are_broken_is_no_run_without(make_config, tmp_path):
    config = make_config(train={"run": str(tmp_path / "run"), "steps": 6, "batch_size": 8})
    run = StoragePath(config.train.run)
    prepare_folder(run, config)
    (add_checkpoint(config) / "model.safetensors").write_bytes(b"torn")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert prepare_folder(run, config) is None, "as a kill in the first checkpoint leaves it"
    config = changed(config, **{"optim.lr": 0.0001})
    with pytest.raises(UserError, match=r"another optim\.lr, and none of its checkpoints is whole; delete the folder"):
        prepare_folder(run, config)
    assert (run / "metrics.jsonl").exists()


def test_a_finished_run_is_kept_also_without_its_checkpoints(make_config, tmp_path):
    config = make_config(train={"run": str(tmp_path / "run"), "steps": 6, "batch_size": 8})
    run = StoragePath(config.train.run)
    prepare_folder(run, config)
    result = {"final": {"score": 1.5}, "best": {"step": 4}, "steps": 6, "seconds": 1.0, "checkpoint": "x"}
    (run / "result.json").write_text(json.dumps(result))
    assert prepare_folder(run, config) == result
    config = changed(config, **{"optim.lr": 0.0001})
    with pytest.raises(UserError, match=r"holds a run with another optim\.lr; choose another"):
        prepare_folder(run, config)
