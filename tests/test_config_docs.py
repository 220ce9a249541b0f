"""The page on the configuration."""

from multas_ray.config import Config
from multas_ray.config_docs import config_page, sections
from tests.shared import ROOT


def test_the_page_is_what_the_models_say():
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == config_page(), "make it anew: python -m multas_ray.config_docs > docs/config.md"


def test_every_field_is_described():
    found = list(sections("", Config))
    assert "distill.seg" in dict(found)
    values = [(path, name, field) for path, section in found for name, field in section.model_fields.items()]
    lacking = [f"{path}.{name}" for path, name, field in values if not field.description]
    assert not lacking
