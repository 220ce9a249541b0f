"""A study: its layout, its trials, its summary."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image

from multas_ray.cli import FAILED
from multas_ray.errors import RunError, UserError
from multas_ray.evaluate.evaluator import Prediction
from multas_ray.formats import scenes
from multas_ray.model.network import MultiTaskNet
from multas_ray.report.pictures import GAP, STRIP
from multas_ray.run_folder import read_metrics
from multas_ray.study import disagreements
from multas_ray.study.disagreements import disagreement
from multas_ray.study.layout import Study, lay_out, load_study
from multas_ray.study.results import TrialResult, has_network, portable, read_results
from multas_ray.study.summary import write_summary
from multas_ray.study.trials import run_study, trials_that_fit
from multas_ray.tasks.detection.postprocess import Detections
from tests.support.configs import changed
from tests.support.jobs import call
from tests.support.processes import PATIENCE, kill_family
from tests.support.runs import wait_for_step
from tests.support.shared import ROOT
from tests.support.wandb_file import finished_records

TEACHERS = {"det": {"checkpoint": "arm:det"}, "seg": {"checkpoint": "arm:seg"}}


@pytest.fixture
def make_study(make_config, tmp_path):
    """Makes a study of tiny runs on the scenes."""

    def make(arms: dict, **settings) -> Study:
        base = make_config(train={"steps": 4, "checkpoint_every_steps": 2}, evaluate={"pictures": 0})
        tree = base.model_dump(mode="json", exclude_defaults=True)
        return Study(
            name="test",
            runs=str(tmp_path / "runs"),
            results=str(tmp_path / "results"),
            base=tree,
            arms=arms,
            **({"seeds": [0]} | settings),
        )

    return make


def test_teachers_come_first_and_every_student_has_those_of_its_seed(make_study):
    arms = {"kd": {"teachers": TEACHERS}, "det": {"model": {"tasks": ["det"]}}, "seg": {"model": {"tasks": ["seg"]}}}
    trials = lay_out(make_study(arms, seeds=[3, 5]))
    assert list(trials) == ["det-3", "seg-3", "kd-3", "det-5", "seg-5", "kd-5"]
    student = trials["kd-5"]
    assert student.needs == ("det-5", "seg-5")
    assert student.config.teachers.det.checkpoint == trials["det-5"].config.train.run
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
    assert (teachers.det.checkpoint, teachers.seg.checkpoint) == (str(tmp_path / "runs/det"), str(tmp_path / "s"))
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


def fake(arm: str, seed: int, **final: float) -> TrialResult:
    """A result but for its configuration."""
    curve = [{"step": step, **{name: value * step / 20 for name, value in final.items()}} for step in (10, 20)]
    needs = [f"det-{seed}", f"seg-{seed}"] if arm == "kd" else []
    costs = {"steps": 20, "seconds": 60.0, "million_parameters": 3.0, "gmacs": 0.5}
    return TrialResult.model_construct(arm=arm, seed=seed, final=final, needs=needs, curve=curve, **costs)


@pytest.mark.parametrize("single", [{"det/AP": 0.0}, {"det/AP50": 1.0}, None], ids=["nothing", "another", "missing"])
def test_there_is_no_gain_over_an_arm_that_has_learnt_nothing(make_study, single):
    study = make_study({"det": {}, "seg": {}, "kd": {}}, seeds=[0])
    results = {
        "seg-0": fake("seg", 0, **{"seg/mIoU": 50.0}),
        "kd-0": fake("kd", 0, **{"det/AP": 9.0, "seg/mIoU": 55.0}),
    }
    if single is not None:
        results["det-0"] = fake("det", 0, **single)
    write_summary(study, results)

    found = json.loads((Path(study.results) / "extras.json").read_text())
    assert found["arms"]["kd"]["metrics"].keys() == {"det/AP", "seg/mIoU"}


def test_the_summary_has_means_intervals_and_paired_differences(make_study, tmp_path):
    study = make_study({"det": {}, "seg": {}, "kd": {}, "odd": {}}, seeds=[0, 1, 2])
    results = {}
    for seed in study.seeds:
        results[f"det-{seed}"] = fake("det", seed, **{"det/AP": 20.0 + seed, "det/AP/cat": 30.0})
        results[f"seg-{seed}"] = fake("seg", seed, **{"seg/mIoU": 50.0})
        both = {"det/AP": 22.0 + 2 * seed, "seg/mIoU": 55.0, "det/AP/cat": 33.0}
        results[f"kd-{seed}"] = fake("kd", seed, **both)
    results["odd-1"] = fake("odd", 1, **{"det/AP": 1.0, "det/AP/cat": 1.0})
    page = write_summary(study, results)

    folder = Path(study.results)
    outcome = json.loads((folder / "study.json").read_text())
    assert outcome["arms"].keys() == {"det", "seg", "kd"}
    assert outcome["arms"]["kd"]["seeds"] == 3
    # Of 22, 24 and 26.
    expected = {"mean": 24.0, "low": pytest.approx(24 - 4.968, abs=1e-3), "high": pytest.approx(24 + 4.968, abs=1e-3)}
    assert outcome["arms"]["kd"]["metrics"]["det/AP"] == expected
    (difference,) = [line for line in outcome["differences"] if line["arm"] == "kd" and line["against"] == "det"]
    # Of 2, 3 and 4.
    assert difference["metric"] == "det/AP"
    assert difference["mean"] == 3.0
    assert difference["low"] == pytest.approx(3 - 2.484, abs=1e-3)
    # 10 % in detection (22 / 20), 14.29 % and 18.18 %; 10 % in segmentation.
    gain = outcome["arms"]["kd"]["metrics"]["gain"]["mean"]
    assert gain == pytest.approx((10 + 10 + 14.2857 + 10 + 18.1818 + 10) / 6, abs=1e-3)

    extras = json.loads((folder / "extras.json").read_text())
    assert extras["arms"].keys() == {"odd"}
    assert extras["arms"]["odd"]["metrics"]["det/AP"] == {"mean": 1.0, "low": None, "high": None}
    # 1 of the seed that they have in common, against 21 and 24.
    apart = {"arm": "odd", "metric": "det/AP", "low": None, "high": None}
    assert extras["differences"] == [
        apart | {"against": "det", "mean": -20.0},
        apart | {"against": "kd", "mean": -23.0},
    ]
    # Of two references, the later one with the earlier.
    assert {(line["arm"], line["against"]) for line in outcome["differences"]} == {("kd", "det"), ("kd", "seg")}
    text = (folder / "study.md").read_text()
    assert "| kd | 3 | 24.0 ± 5.0 |" in text
    # Two teachers of a minute.
    assert "| 1.0 | 2.0 |" in text
    for name in ("arms", "trade_off", "classes", "curves"):
        Image.open(folder / f"{name}.png").verify()
        assert f"({name}.png)" in text
    assert Path(page).read_text().count("<img") == 4


def test_arms_are_compared_with_those_that_a_study_names_and_on_its_groups_of_classes(make_study):
    groups = {"of others": {"det": ["cow", "sheep"], "seg": ["cat"]}}
    arms = {"boxes": {}, "naive": {}, "masked": {}}
    study = make_study(arms, seeds=[0, 1, 2], references=["naive"], class_groups=groups)
    results = {}
    for seed in study.seeds:
        results[f"boxes-{seed}"] = fake("boxes", seed, **{"det/AP": 20.0, "det/AP/cat": 20.0})
        for arm, more in (("naive", 0), ("masked", 4 + seed)):
            own = {"det/AP/cow": 10.0, "det/AP/sheep": 20.0 + more, "seg/IoU/cat": 30.0}
            results[f"{arm}-{seed}"] = fake(arm, seed, **{"det/AP": 15.0, "seg/mIoU": 50.0} | own)
    write_summary(study, results)

    folder = Path(study.results)
    outcome = json.loads((folder / "study.json").read_text())
    differences = {(line["arm"], line["metric"]): line for line in outcome["differences"]}
    assert {line["against"] for line in outcome["differences"]} == {"naive"}
    assert not any(arm == "boxes" for arm, _ in differences), "a mean over other classes"
    # Half of 4, 5 and 6.
    assert differences["masked", "det/AP (of others)"]["mean"] == 2.5
    assert differences["masked", "det/AP (of others)"]["low"] == pytest.approx(2.5 - 1.242, abs=1e-3)
    assert differences["masked", "seg/IoU (of others)"]["mean"] == 0
    assert outcome["arms"]["naive"]["metrics"]["det/AP (of others)"]["mean"] == 15
    assert "det/AP (of others)" not in outcome["arms"]["boxes"]["metrics"]
    text = (folder / "study.md").read_text()
    assert "gain over single-task [%]" not in text
    assert "(by_class.png)" in text
    with pytest.raises(UserError, match=r"class_groups: no arm has seg/IoU/cow, which 'seg/IoU \(x\)' is to be of"):
        write_summary(make_study(arms, class_groups={"x": {"seg": ["cow"]}}), results)


def test_the_summary_joins_the_group_of_the_trials_in_wandb(make_study):
    study = make_study({"det": {}}, seeds=[0, 1, 2])
    study.base["tracking"] = {"wandb": "offline", "project": "somewhere"}
    write_summary(study, {f"det-{seed}": fake("det", seed, **{"det/AP": 20.0}) for seed in study.seeds})
    (file,) = (Path(study.runs) / "summary").rglob("run-*.wandb")
    records = finished_records(file)
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.display_name, run.run_group, run.job_type, run.project) == ("summary", "test", "summary", "somewhere")
    logged = {item.key or item.nested_key[0] for record in records for item in record.history.item}
    assert {"Arms", "Metrics by arm: mean and 95 % interval, a dot a seed"} <= logged


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


def prediction(box_class: int, pixel_class: int) -> Prediction:
    """One box on the left half, and pixels of one class."""
    found = Detections(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([0.9]), torch.tensor([box_class]))
    logits = torch.zeros(3, 8, 8)
    logits[pixel_class] = 1
    return {"det": found, "seg": logits}


def test_disagreement_is_the_share_of_pixels_that_two_arms_give_different_classes():
    assert disagreement([prediction(0, 1), prediction(0, 1)]) == 0
    assert disagreement([prediction(0, 1), prediction(1, 1)]) == pytest.approx(0.5)
    assert disagreement([prediction(0, 1), prediction(0, 2)]) == pytest.approx(1.0)
    # Two of three pairs differ, in all pixels.
    assert disagreement([prediction(0, 1), prediction(0, 1), prediction(0, 2)]) == pytest.approx(2 / 3)


def test_arms_are_drawn_side_by_side_on_the_images_they_differ_on(make_config):
    networks = {}
    for seed, tasks in enumerate((["det"], ["seg"], ["det", "seg"])):
        torch.manual_seed(seed)
        config = make_config(model={"tasks": tasks}).model
        network = MultiTaskNet(config, {"det": scenes.CLASSES, "seg": ["background", *scenes.CLASSES]})
        networks["_".join(tasks)] = network.eval().requires_grad_(False)
    trial = SimpleNamespace(config=make_config())
    picture = Image.open(io.BytesIO(disagreements._draw(trial, networks)))
    # Scenes of 64 pixels are enlarged four times: ground truth, the two single-task networks as one, the other.
    assert picture.width == 3 * 4 * 64 + 4 * GAP
    assert picture.height >= STRIP + disagreements.IMAGES * (4 * 64 + GAP)


def test_images_are_compared_where_most_arms_have_their_networks(make_study, monkeypatch):
    study = make_study({"a": {}, "b": {}, "c": {}}, seeds=[0, 1])
    there = {"a-0", "a-1", "c-1"}
    monkeypatch.setattr(disagreements, "has_network", lambda trial: trial.name in there)
    classes = {"a": {"det": ["cat"]}, "b": {}, "c": {"det": ["cat"], "seg": ["background", "cat"]}}
    load = {f"{arm}-{seed}": SimpleNamespace(classes=known) for arm, known in classes.items() for seed in (0, 1)}
    monkeypatch.setattr(disagreements, "load_network", lambda run: (load[Path(run).name], None))
    monkeypatch.setattr(disagreements, "_draw", lambda trial, networks: (trial.name, list(networks)))
    drawn = disagreements.disagreements(study, lay_out(study), ["a", "b", "c"])
    assert drawn == ("c-1", ["a", "c"])
    classes["c"]["det"] = ["cat", "dog"]
    assert disagreements.disagreements(study, lay_out(study), ["a", "b", "c"]) is None
    there.clear()
    assert disagreements.disagreements(study, lay_out(study), ["a", "b", "c"]) is None
