"""A study: its layout and its trials."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from multas_ray.cli import FAILED
from multas_ray.errors import RunError, UserError
from multas_ray.run_folder import read_metrics
from multas_ray.study.layout import lay_out, load_study
from multas_ray.study.results import has_network, portable, read_results
from multas_ray.study.trials import run_study, trials_that_fit
from tests.support.configs import changed
from tests.support.jobs import call
from tests.support.processes import PATIENCE, kill_family
from tests.support.runs import wait_for_step
from tests.support.shared import ROOT

TEACHERS = {"det": {"checkpoint": "arm:det"}, "seg": {"checkpoint": "arm:seg"}}


def test_teachers_come_first_and_every_student_has_those_of_its_seed(make_study):
    arms = {"kd": {"teachers": TEACHERS}, "det": {"model": {"tasks": ["det"]}}, "seg": {"model": {"tasks": ["seg"]}}}
    trials = lay_out(make_study(arms, seeds=[3, 5]))
    assert list(trials) == ["det-3", "seg-3", "kd-3", "det-5", "seg-5", "kd-5"]
    student = trials["kd-5"]
    assert student.needs == ("det-5", "seg-5")
    assert student.config.teachers.det.source == trials["det-5"].config.train.run
    assert student.config.train.seed == 5
    assert student.config.tracking.group == "test"
    assert trials["det-3"].config.model.tasks == ["det"]
    assert student.config.model.tasks == ["det", "seg"]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"kd": {"teachers": TEACHERS}}, "arms.kd: arm:det is no arm of the study (kd)"),
        ({"a": {"teachers": {"store": "arm:b"}}, "b": {"teachers": {"store": "arm:a"}}}, "needs"),
        ({"a": {"optim": {"rate": 1}}}, "arms.a: optim.rate: no such key"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(make_study, arms, message):
    with pytest.raises(UserError) as caught:
        lay_out(make_study(arms))
    assert message in str(caught.value)


def test_paths_of_a_study_are_those_of_the_folder_it_was_started_in(make_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trials = lay_out(make_study({"kd": {"teachers": {"det": {"checkpoint": "runs/det"}, "seg": {"checkpoint": "s"}}}}))
    teachers = trials["kd-0"].config.teachers
    assert (teachers.det.source, teachers.seg.source) == (str(tmp_path / "runs/det"), str(tmp_path / "s"))
    sources = {"street": {"path": "data/street"}, "scenes": {"path": "other"}}
    [trial] = lay_out(make_study({"both": {"data": {"path": None, "sources": sources}}}, seeds=[0])).values()
    found = {name: source.path for name, source in trial.config.data.sources.items()}
    assert found == {"street": str(tmp_path / "data/street"), "scenes": str(tmp_path / "other")}


def test_a_study_file_with_a_wrong_key_is_refused(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        yaml.safe_dump({"name": "x", "runs": "r", "results": "s", "base": {}, "arms": {"a": {}}, "seed": 1})
    )
    with pytest.raises(UserError, match=r"seed: no such key; allowed here: .*seeds"):
        load_study(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": {"train": None}}, r"base\.train: .*dictionary \(given: None\)"),
        ({"arms": {"a": {"teachers": "arm:a"}}}, r"arms\.a\.teachers: .*dictionary \(given: 'arm:a'\)"),
        ({"arms": {"a": {"teachers": {"det": "arm:a"}}}}, r"arms\.a: teachers\.det: |needs"),
        ({"arms": {"a": {"data": {"path": [1]}}}}, r"arms\.a: data\.path: .*string \(given: \[1\]\)"),
        ({"arms": {"a": {"data": {"path": "x\0"}}}}, r"'x\\x00': not a path"),
        ({"arms": {"a/../b": {}}}, r"arms\.a/\.\./b.*: "),
        ({"runs": "~nobody-of-this-name/x"}, "not a path"),
        ({"seeds": [-1]}, r"arms\.a: train\.seed: "),
        ({"seeds": []}, "seeds: "),
        ({"references": ["full"]}, r"references: full is no arm of the study \(a\)"),
        ({"class_groups": {"x": {"det": []}}}, r"class_groups\.x\.det: "),
    ],
    ids=str,
)
def test_a_study_file_of_another_form_is_refused(tmp_path, changes, words):
    file = tmp_path / "study.yaml"
    whole = {"name": "x", "runs": "r", "results": "s", "base": {"data": {"path": "d"}}, "arms": {"a": {}}}
    file.write_text(yaml.safe_dump(whole | {"base": {"data": {"path": "d"}, "train": {"steps": 1}}} | changes))
    with pytest.raises(UserError, match=words) as caught:
        lay_out(load_study(file))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:100], "not JSON"),
        (lambda text: "\udcff" + text, "not text in UTF-8"),
        (lambda text: "[]", "valid dictionary"),
        (lambda text: text.replace('"steps": 9', '"stepps": 9'), "steps: missing"),
        (lambda text: text.replace('"det/AP": 20.0', '"det/AP": NaN'), r"final\.det/AP: "),
        (lambda text: text.replace('"needs": []', '"needs": ["det"]'), r"needs\.0: "),
        (lambda text: text.replace('"batch_size": 16', '"batch_size": "many"'), r"config\.train\.batch_size: "),
    ],
)
def test_a_kept_result_that_is_none_is_named(make_study, tmp_path, change, words):
    study = make_study({"det": {"model": {"tasks": ["det"]}, "train": {"batch_size": 16}}})
    trials = lay_out(study)
    trial = trials["det-0"]
    numbers = {"steps": 9, "seconds": 1.0, "million_parameters": 1.0, "gmacs": 1.0}
    kept = {"arm": "det", "seed": 0, "final": {"det/AP": 20.0}, "needs": [], "curve": [{"step": 9}], **numbers}
    kept["config"] = portable(trial.config)
    file = Path(study.results) / "trials" / "det-0.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(kept))
    assert read_results(study, trials)["det-0"].model_dump(mode="json") == kept
    file.write_bytes(change(json.dumps(kept)).encode(errors="surrogateescape"))
    with pytest.raises(
        UserError, match=rf"^{file}: .*{words}.*; delete it, and what its run folder holds is kept anew"
    ):
        read_results(study, trials)


def test_a_trial_whose_result_is_none_has_no_network(make_study):
    trial = lay_out(make_study({"det": {"model": {"tasks": ["det"]}}}))["det-0"]
    run = Path(trial.config.train.run)
    run.mkdir(parents=True)
    for text in ("", "[]", '{"steps": "many"}'):
        (run / "result.json").write_text(text)
        assert not has_network(trial)


def test_trials_run_once_and_their_results_stand_for_them(make_study, started_ray, tmp_path):
    arms = {
        "kd": {"teachers": {**TEACHERS, "placement": "inline"}},
        "det": {"model": {"tasks": ["det"]}},
        "seg": {"model": {"tasks": ["seg"]}},
    }
    study = make_study(arms)
    results = run_study(study)
    assert results.keys() == {"kd-0", "det-0", "seg-0"}
    kept = json.loads((tmp_path / "results" / "trials" / "kd-0.json").read_text())
    assert kept == results["kd-0"].model_dump(mode="json")
    last = read_metrics(tmp_path / "runs" / "kd-0")[-1]
    assert kept["final"]["det/AP"] == last["det/AP"]
    assert kept["needs"] == ["det-0", "seg-0"]
    assert str(tmp_path) not in json.dumps(kept)

    # With its result, a run's folder is not needed any more.
    (tmp_path / "runs").rename(tmp_path / "gone")
    assert run_study(study) == results
    assert not (tmp_path / "runs").exists()
    # What is to be trained with its network is another matter.
    (tmp_path / "gone").rename(tmp_path / "runs")
    (tmp_path / "results" / "trials" / "kd-0.json").unlink()
    before = (tmp_path / "runs" / "det-0" / "metrics.jsonl").stat().st_mtime_ns
    assert run_study(study).keys() == results.keys()
    assert (tmp_path / "runs" / "det-0" / "metrics.jsonl").stat().st_mtime_ns == before

    longer, scored = make_study(arms), make_study(arms)
    longer.base["train"]["steps"] = 6
    assert has_network(lay_out(study)["det-0"])
    assert not has_network(lay_out(longer)["det-0"]), "students wait for a teacher of all its steps"
    scored.base["evaluate"]["protocol"] = "voc2012"
    with pytest.raises(UserError, match=r"trials/\w+-0.json: is of another evaluate.protocol"):
        run_study(scored)
    changed = make_study(arms | {"det": {"model": {"tasks": ["det"]}, "optim": {"lr": 0.5}}})
    with pytest.raises(UserError, match=r"trials/det-0.json: is of another optim.lr"):
        run_study(changed)


def test_trials_run_within_the_room_and_students_after_their_teachers(make_study, started_ray, tmp_path, monkeypatch):
    single = {"model": {"tasks": ["det"]}}
    student = single | {"teachers": {"det": {"checkpoint": "arm:det"}}}
    broken = single | {"teachers": {"det": {"checkpoint": "arm:bad"}}}
    arms = {"kd": student, "det": single, "bad": single, "broken": broken, "other": single}

    def run(trial, file, stored_views, *teachers):
        if trial.arm == "bad":
            raise UserError("no data")
        began = time.time()
        time.sleep(0.5)
        (tmp_path / trial.name).write_text(json.dumps([began, time.time()]))

    monkeypatch.setattr("multas_ray.study.trials._run_trial", run)
    with pytest.raises(RunError, match="4 of 10 trials failed; bad-0: no data"):
        run_study(make_study(arms, seeds=[0, 1], parallel=2))
    times = {file.name: json.loads(file.read_text()) for file in tmp_path.glob("*-[01]")}
    assert times.keys() == {f"{arm}-{seed}" for arm in ("det", "kd", "other") for seed in (0, 1)}
    for seed in (0, 1):
        assert times[f"kd-{seed}"][0] >= times[f"det-{seed}"][1]
    starts = sorted(began for began, _ in times.values())
    assert max(sum(began <= start < ended for began, ended in times.values()) for start in starts) == 2


@pytest.mark.slow
def test_a_failed_trial_takes_its_students_with_it_and_no_other(make_study, started_ray, tmp_path, monkeypatch, capsys):
    arms = {
        "det": {"model": {"tasks": ["det"]}, "data": {"train": "absent"}},
        "seg": {"model": {"tasks": ["seg"]}},
        "kd": {"model": {"tasks": ["det"]}, "teachers": {"det": {"checkpoint": "arm:det"}}},
    }
    with pytest.raises(RunError, match=r"2 of 3 trials failed; det-0: .*no split 'absent'"):
        run_study(make_study(arms))
    assert [file.name for file in (tmp_path / "results" / "trials").iterdir()] == ["seg-0.json"]
    # The job tells what there is, and then that it failed.
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(make_study(arms).model_dump()))
    code, lines = call(monkeypatch, capsys, "study.py", "--config", str(file))
    assert code == FAILED
    assert lines[-1].startswith("failed: 2 of 2 trials failed; det-0")
    assert "| seg | 1 |" in (tmp_path / "results" / "study.md").read_text()


@pytest.mark.slow
def test_a_killed_study_goes_on_with_what_was_cut_short(make_study, tmp_path):
    arms = {
        "det": {"model": {"tasks": ["det"]}, "train": {"steps": 10}},
        "seg": {"model": {"tasks": ["seg"]}, "train": {"steps": 10}},
        "kd": {"teachers": {**TEACHERS, "placement": "stored"}, "train": {"steps": 60, "checkpoint_every_steps": 5}},
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(make_study(arms, parallel=2, stored_views=1).model_dump()))

    def start() -> subprocess.Popen:
        command = [sys.executable, "jobs/study.py", "--config", str(file)]
        return subprocess.Popen(command, cwd=ROOT, stdout=(tmp_path / "log").open("a"), stderr=subprocess.STDOUT)

    study = start()
    wait_for_step(str(tmp_path / "runs" / "kd-0"), 12)
    kill_family(study)
    trials = tmp_path / "results" / "trials"
    assert {result.name for result in trials.iterdir()} == {"det-0.json", "seg-0.json"}
    kept = {result: result.stat().st_mtime_ns for result in trials.iterdir()}
    assert start().wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert {result: result.stat().st_mtime_ns for result in kept} == kept
    attempts = {
        name: [json.loads(line) for line in (tmp_path / "runs" / name / "attempts.jsonl").read_text().splitlines()]
        for name in ("det-0", "seg-0", "kd-0")
    }
    assert {name: len(lines) for name, lines in attempts.items()} == {"det-0": 1, "seg-0": 1, "kd-0": 2}
    assert attempts["kd-0"][1]["from_step"] >= 5
    steps = [line["step"] for line in read_metrics(tmp_path / "runs" / "kd-0") if "loss/total" in line]
    assert steps == list(range(1, 61))
    assert "Images on which the arms disagree most" in (tmp_path / "runs" / "study.html").read_text()


def test_a_stored_arm_has_a_store_of_its_own_for_every_seed(make_study):
    teachers = {"det": {"checkpoint": "arm:det"}, "placement": "stored"}
    arms = {"det": {"model": {"tasks": ["det"]}}, "stored": {"teachers": teachers, "model": {"tasks": ["det"]}}}
    trials = lay_out(make_study(arms, seeds=[0, 1]))
    stores = {trials[f"stored-{seed}"].config.teachers.store for seed in (0, 1)}
    assert stores == {f"{trials[f'stored-{seed}'].config.train.run}/targets" for seed in (0, 1)}


def test_trials_at_a_time_follow_cores_and_gpus(make_config, random_teachers, monkeypatch):
    monkeypatch.setattr("multas_ray.study.trials.cluster_cores", lambda: 16)
    monkeypatch.setattr("multas_ray.study.trials.cluster_gpus", lambda: 4)
    plain = make_config(train={"run": "r", "steps": 1, "workers": 2, "threads": 3})
    assert trials_that_fit(plain) == 2
    assert trials_that_fit(changed(plain, **{"train.workers": 32, "train.batch_size": 32})) == 1
    own = {"run": "r", "steps": 1, "workers": 2, "resources": {"gpu": 0.5}}
    assert trials_that_fit(make_config(train=own)) == 4
    pool = {**random_teachers, "resources": {"gpu": 0.5}}
    assert trials_that_fit(make_config(train=own, teachers=pool)) == 2
    assert trials_that_fit(make_config(train=own, teachers=pool | {"pool": "shared"})) == 4
    # On a cluster each of them asks for a worker's CPU, half of one for each teacher, and a quarter for its data task.
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    one = make_config(train={"run": "r", "steps": 1}, teachers={**random_teachers, "resources": {"cpu": 0.5}})
    assert trials_that_fit(one) == 5
