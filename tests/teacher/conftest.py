import pytest

from multas_ray.data.schema import read_info
from multas_ray.teacher.specs import teacher_specs
from multas_ray.teacher.teacher import TeacherSpec


@pytest.fixture
def specs(make_config, random_teachers) -> dict[str, TeacherSpec]:
    """Two teachers for the scenes."""
    config = make_config(teachers=random_teachers)
    return teacher_specs(config, read_info(config.data.path))


@pytest.fixture
def stored(make_config, random_teachers, tmp_path):
    """Makes the configuration of a run that trains from the store in this test's folder."""

    def make(**sections):
        teachers = {"placement": "stored", "store": str(tmp_path / "store"), **random_teachers}
        return make_config(**{"teachers": teachers, **sections})

    return make
