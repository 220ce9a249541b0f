"""jobs/teachers.py check: what teachers are worth on a run's validation split."""

import json
import sys

import numpy as np
import pytest
import yaml

from jobs.teachers import main
from multas_ray.data.index import read_index
from multas_ray.data.schema import read_info
from multas_ray.formats import scenes
from multas_ray.teacher.check import check_teacher
from multas_ray.teacher.specs import teacher_specs

KNOWS = "python:tests.support.foreign:knows_scenes"


def checked(config, task, original=False):
    index = read_index(config.data.path, "val")
    spec = teacher_specs(config, read_info(config.data.path))[task]
    return check_teacher(spec, config, index, "cpu", original)


def test_a_teacher_of_random_weights_is_worth_nothing(make_config, random_teachers):
    found = checked(make_config(teachers=random_teachers), "seg")
    assert found.images == 11
    assert found.metrics["seg/mIoU"] < 20
    assert 0 < found.error < 1


def test_a_teacher_that_knows_one_class_is_scored_on_it_alone(make_config):
    config = make_config(teachers={"seg": {"source": KNOWS}})
    found = checked(config, "seg")
    assert found.metrics.keys() == {"seg/mIoU", "seg/IoU/background", f"seg/IoU/{scenes.CLASSES[0]}"}
    means = [value for name, value in found.metrics.items() if name != "seg/mIoU"]
    assert found.metrics["seg/mIoU"] == pytest.approx(np.mean(means))
    assert found.calibration.keys() == {"background", scenes.CLASSES[0]}
    # Its temperature is that of the configuration, times what fits on top.
    warm = checked(make_config(teachers={"seg": {"source": KNOWS, "temperature": 2}}), "seg")
    assert warm.temperature == pytest.approx(found.temperature, rel=0.1)


def test_a_teacher_is_shown_images_at_its_own_best_size(make_config, random_teachers):
    config = make_config(teachers={**random_teachers, "seg": {"source": KNOWS, "size": 96}})
    assert checked(config, "seg").size == config.data.eval_size
    found = checked(config, "seg", original=True)
    assert (found.size, found.images) == (96, 11)
    # What its checkpoint says.
    assert checked(config, "det", original=True).size == 64


@pytest.mark.ray
def test_the_job_prints_each_teacher_and_writes_them(started_ray, make_config, random_teachers, tmp_path, capsys):
    config = make_config(teachers={**random_teachers, "seg": [random_teachers["seg"], {"source": KNOWS}]})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    sys.argv = ["teachers.py", "check", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]
    main()
    printed = capsys.readouterr().out
    assert "teachers.det on the validation split" in printed
    assert "calibration error 2" in printed
    assert f"2. {KNOWS}: 11 images of {config.data.eval_size} pixels" in printed
    assert "fits best" in printed
    written = json.loads((tmp_path / "out" / "teachers.json").read_text())
    assert [each["task"] for each in written] == ["det", "seg", "seg"]
    assert all(np.isfinite(each["seconds"]) for each in written)
