"""A search: how its space is written, and what it finds."""

import json
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from multas_ray.config_file import load_config, parse_config
from multas_ray.errors import UserError
from multas_ray.report.sweep_plots import axis_scale
from multas_ray.run_folder import read_metrics
from multas_ray.study.search import Sweep, parse_search
from multas_ray.study.sweep import _scheduler, run_sweep
from tests.support.processes import PATIENCE, kill_family
from tests.support.shared import ROOT


def test_a_search_space_is_read_from_text():
    space = parse_search(
        ["optim.lr=loguniform(1e-4,1e-2)", "distill.det.on=choice(missing, all)", "optim.warmup_steps=randint(1,4)"]
    )
    rates = [space["optim.lr"].sample() for _ in range(200)]
    assert 1e-4 <= min(rates) < 3e-4
    assert 3e-3 < max(rates) <= 1e-2
    assert {space["distill.det.on"].sample() for _ in range(50)} == {"missing", "all"}
    assert {space["optim.warmup_steps"].sample() for _ in range(50)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr", "write it as path=domain(values)"),
        ("optim.lr=normal(0,1)", "no domain 'normal'; allowed: choice, uniform, loguniform, randint, lograndint"),
        ("optim.lr=uniform(1)", "two numbers are needed"),
        ("optim.lr=uniform(2,1)", "from 2 to 1 is no range"),
        ("optim.lr=loguniform(0,1)", "from 0 to 1 is no range of a logarithm"),
        ("train.steps=randint(1.5,3)", "two whole numbers are needed"),
        ("optim.lr=choice()", "nothing to choose from"),
        ("optim.lr=choice([)", "--search 'optim.lr=choice([)'"),
    ],
)
def test_a_wrong_search_space_is_refused_in_one_line(text, message):
    with pytest.raises(UserError) as caught:
        parse_search([text])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_axis_has_words_evenly_and_wide_ranges_as_logarithms():
    assert axis_scale(["b", "a", "b"]) == ([0.75, 0.25, 0.75], [(0.25, "a"), (0.75, "b")])
    assert axis_scale([1, 3, 2])[0] == [0.0, 1.0, 0.5]
    heights, ticks = axis_scale([1e-4, 1e-2, 1e-3])
    assert heights == pytest.approx([0.0, 1.0, 0.5])
    assert [label for _, label in ticks] == ["0.0001", "0.001", "0.01"]
    assert axis_scale([5.0, 5.0]) == ([0.0, 0.0], [(0.0, "5")])


@pytest.fixture
def tree(make_config) -> dict:
    config = make_config(train={"steps": 4}, evaluate={"every_steps": 2, "pictures": 0})
    return config.model_dump(mode="json", exclude_defaults=True)


def test_a_search_that_cannot_be_run_is_refused(tree, tmp_path):
    out = str(tmp_path / "sweep")
    with pytest.raises(UserError, match=r"optim.rate: no such key"):
        run_sweep(Sweep(tree, ["optim.rate=uniform(0,1)"], out, trials=1))
    with pytest.raises(UserError, match=r"set evaluate.every_steps"):
        run_sweep(Sweep(tree | {"evaluate": {}}, ["optim.lr=uniform(0.1,1)"], out, trials=1))
    single = tree | {"model": tree["model"] | {"tasks": ["seg"]}}
    with pytest.raises(UserError, match=r"--metric det/AP: det is not trained \(model.tasks: seg\)"):
        run_sweep(Sweep(single, ["optim.lr=uniform(0.1,1)"], out, trials=1, metric="det/AP"))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"trials": '], ids=range(6))
def test_a_folder_whose_search_is_not_told_is_refused(tree, tmp_path, content):
    (tmp_path / "search.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"^{tmp_path}/search\.json: not "):
        run_sweep(Sweep(tree, ["optim.lr=uniform(0.1,1)"], str(tmp_path), trials=1))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"train": None}, r"train\.steps: missing"),
        ({"teachers": "x"}, r"teachers: .*dictionary"),
        ({"data": {"path": 5}}, r"data\.path: "),
    ],
)
def test_a_configuration_of_another_form_is_refused(tree, tmp_path, section, words):
    with pytest.raises(UserError, match=words):
        run_sweep(Sweep(tree | section, ["optim.lr=uniform(0.1,1)"], str(tmp_path), trials=1))


def test_median_stopping_ends_the_poor_and_pauses_nobody(tree):
    scheduler = _scheduler(Sweep(tree, [], "out", trials=5, scheduler="median"), parse_config(deepcopy(tree)))
    scheduler.set_search_properties("score", "max")
    waiting = SimpleNamespace(status=Trial.PENDING)
    controller = SimpleNamespace(get_live_trials=lambda: [waiting])
    trials = [Mock(trial_id=name) for name in "abcd"]
    decisions = []
    for trial, value in zip(trials, (10.0, 20.0, 30.0, 5.0), strict=True):
        scheduler.on_trial_add(controller, trial)
        decisions.append(scheduler.on_trial_result(controller, trial, {"step": 2, "score": value}))
    assert decisions == [TrialScheduler.CONTINUE] * 3 + [TrialScheduler.STOP]


@pytest.mark.slow
def test_a_search_finds_the_rate_that_learns_and_stops_the_other_early(tree, started_ray, tmp_path):
    tree["train"]["steps"], tree["evaluate"]["every_steps"] = 60, 20
    out = tmp_path / "sweep"
    # With the second nothing is learnt; this seed draws the first twice, then the second.
    sweep = Sweep(tree, ["optim.lr=choice(0.003,1e-12)"], str(out), trials=3, parallel=1, metric="seg/mIoU", seed=11)
    result = run_sweep(sweep)
    assert json.loads((out / "sweep.json").read_text()) == result
    rates = [trial["parameters"]["optim.lr"] for trial in result["trials"]]
    assert rates == [0.003, 0.003, 1e-12]
    assert [trial["steps"] for trial in result["trials"]][2] == 20
    assert result["best"]["parameters"] == {"optim.lr": 0.003}
    best = load_config(out / "best.yaml")
    assert best.optim.lr == 0.003
    assert Path(best.train.run).parent == out
    assert "<img" in (out / "sweep.html").read_text()
    assert (out / result["best"]["name"] / "result.json").exists(), "not stopped between its last step and its end"
    # What is finished is not run again.
    assert run_sweep(sweep) == result
    with pytest.raises(UserError, match="holds a search with another metric"):
        run_sweep(Sweep(tree, sweep.search, str(out), trials=3, metric="det/AP", seed=11))
    with pytest.raises(UserError, match="holds a search with another trials"):
        run_sweep(replace(sweep, trials=4))


@pytest.mark.slow
def test_a_killed_search_of_trials_side_by_side_goes_on(tree, tmp_path):
    tree["train"] |= {"steps": 40, "checkpoint_every_steps": 5}
    tree["evaluate"]["every_steps"] = 20
    file, out = tmp_path / "config.yaml", tmp_path / "sweep"
    file.write_text(parse_config(tree).to_yaml())

    def start() -> subprocess.Popen:
        command = [sys.executable, "jobs/sweep.py", "--config", str(file), "--out", str(out), "--trials", "4"]
        command += ["--parallel", "2", "--scheduler", "none", "--search", "optim.lr=loguniform(1e-4,1e-2)"]
        return subprocess.Popen(command, cwd=ROOT, stdout=(tmp_path / "log").open("a"), stderr=subprocess.STDOUT)

    def finished() -> dict[Path, int]:
        return {result: result.stat().st_mtime_ns for result in out.glob("*/result.json")}

    search = start()
    end = time.monotonic() + 400
    while not finished():
        assert search.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.2)
    kill_family(search)
    done = finished()
    assert len(done) < 4
    assert start().wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    trials = json.loads((out / "sweep.json").read_text())["trials"]
    assert [trial["steps"] for trial in trials] == [40] * 4
    assert len({trial["parameters"]["optim.lr"] for trial in trials}) == 4
    assert len(finished()) == 4
    assert {result: finished()[result] for result in done} == done, "trained once"
    for trial in trials:
        steps = [line["step"] for line in read_metrics(out / trial["name"]) if "loss/total" in line]
        assert steps == list(range(1, 41))
