"""Teachers from outside in actors of their own."""

import pytest

from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.run_folder import read_metrics
from multas_ray.teacher.pool import start_pool, stop_pool
from multas_ray.teacher.precompute import precompute
from multas_ray.teacher.specs import teacher_specs
from multas_ray.train.run import train
from tests.support.configs import changed

pytestmark = pytest.mark.ray
KNOWS = "python:tests.support.foreign:knows_scenes"


def test_a_run_learns_from_several_teachers_in_a_pool(started_ray, make_config, random_teachers, tmp_path):
    """One of this project that knows all, and one of a callable that knows a class."""
    teachers = {"seg": [random_teachers["seg"], {"source": KNOWS, "batch_size": 3}]}
    config = make_config(teachers=teachers, train={"run": str(tmp_path / "run"), "steps": 4, "batch_size": 8})
    assert train(config)["steps"] == 4
    lines = [line for line in read_metrics(tmp_path / "run") if "loss/kd_seg" in line]
    assert len(lines) == 4
    assert all(line["loss/kd_seg"] > 0 for line in lines)


def test_a_shared_pool_of_several_teachers_is_known_again(started_ray, make_config, random_teachers):
    config = make_config(teachers={"pool": "several", "seg": [random_teachers["seg"], {"source": KNOWS}]})
    info = read_info(config.data.path)
    try:
        first = start_pool(config.teachers, teacher_specs(config, info))
        again = start_pool(config.teachers, teacher_specs(config, info))
        assert [each._actor_id for each in again["seg"]] == [each._actor_id for each in first["seg"]]
        own = random_teachers["seg"]
        others = [[own, {"source": KNOWS, "temperature": 2}], [own | {"temperature": 2}, {"source": KNOWS}]]
        for number, teachers in enumerate(others):
            other = changed(config, **{"teachers.seg": teachers})
            words = rf"pool 'several' serves a seg teacher with another {1 - number}\.settings\.temperature"
            with pytest.raises(UserError, match=words):
                start_pool(other.teachers, teacher_specs(other, info))
    finally:
        stop_pool("several")


def test_what_only_the_teachers_need_is_only_in_their_processes(started_ray, make_config, tmp_path):
    """A module that this process cannot import: described, precomputed with and checked in the runtime environment."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "only_there.py").write_text(
        "from tests.support.foreign import KnowsScenes\n\ndef make(device):\n    return KnowsScenes()\n"
    )
    source = {"source": "python:only_there:make"}
    settings = {"seg": source, "store": str(tmp_path / "store"), "placement": "stored"}
    with pytest.raises(UserError, match=r"No module named 'only_there'; the module must be importable"):
        precompute(make_config(teachers=settings), "original")
    with pytest.raises(UserError, match=r"teachers\.runtime_env: set, but with teachers\.placement: inline"):
        make_config(teachers={"seg": source, "placement": "inline", "runtime_env": {"env_vars": {}}})
    environment = {"env_vars": {"PYTHONPATH": f"{folder}:."}}
    config = make_config(teachers={**settings, "runtime_env": environment})
    assert precompute(config, "original")["images"] == 25
    run = {"run": str(tmp_path / "run"), "steps": 3, "batch_size": 8}
    assert train(changed(config, train=run | {"precision": "float32"}))["steps"] == 3


def test_a_fault_in_the_teachers_environment_is_one_line(started_ray, make_config):
    config = make_config(teachers={"seg": {"source": "python:nowhere:make"}, "runtime_env": {"env_vars": {"A": "1"}}})
    with pytest.raises(UserError, match=r"^teachers\.seg\.source python:nowhere:make: No module named 'nowhere'"):
        teacher_specs(config, read_info(config.data.path))
