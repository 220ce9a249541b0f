"""The summary of a study: means, intervals, paired differences."""

import json
from pathlib import Path

import pytest
from PIL import Image

from multas_ray.errors import UserError
from multas_ray.study.results import TrialResult
from multas_ray.study.summary import write_summary
from tests.support.wandb_file import finished_records


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
