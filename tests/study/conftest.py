"""A study of tiny runs."""

import pytest

from multas_ray.study.layout import Study


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
