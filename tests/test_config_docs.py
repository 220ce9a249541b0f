"""The page on the configuration."""

from multas_ray.config import Config
from multas_ray.config_docs import config_page, sections
from tests.support.shared import ROOT


def test_the_page_is_what_the_models_say():
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == config_page(), "make it anew: python -m multas_ray.config_docs > docs/config.md"


def test_every_field_is_described():
    found = list(sections("", Config))
    assert "distill.seg" in [path for path, *_ in found]
    values = [(path, name, field) for path, section, _ in found for name, field in section.model_fields.items()]
    lacking = [f"{path}.{name}" for path, name, field in values if not field.description]
    assert not lacking


def test_defaults_are_those_of_the_place():
    parts = {part.split(maxsplit=1)[0]: part for part in config_page().split("\n## ")}
    for place, cpu in {"data": "0.25", "teachers": "0.5", "train": "1.0"}.items():
        assert f"| `cpu` | number, ≥ 0 | `{cpu}` |" in parts[f"{place}.resources"]
