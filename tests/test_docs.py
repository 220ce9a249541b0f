"""What the guides name is there: files, functions, configuration keys, command lines."""

import re
import shlex

import pytest
import torch

from multas_ray.config import Config, ModelConfig
from multas_ray.config_docs import sections
from multas_ray.config_file import load_config
from multas_ray.model.network import MultiTaskNet
from multas_ray.model.weights import load_network
from tests.shared import ROOT

GUIDES = [ROOT / "README.md", ROOT / "cluster/README.md", ROOT / "docs/method.md", ROOT / "docs/from_multas.md"]
KEYS = {f"{path}.{name}".strip(".") for path, section, _ in sections("", Config) for name in section.model_fields}
each_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.relative_to(ROOT)))


@each_guide
def test_links_lead_to_files(guide):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", guide.read_text())
    missing = [link for link in links if "://" not in link and not (guide.parent / link).exists()]
    assert not missing


@each_guide
def test_configuration_keys_exist(guide):
    """Everything in backticks, or on a command line, that begins as a key of the configuration does."""
    roots = "|".join(Config.model_fields)
    named = set(re.findall(rf"(?<![\w./-])(?:{roots})\.[a-z_.]+[a-z_]", guide.read_text()))
    files = {key for key in named if key.endswith((".py", ".yaml", ".json", ".html", ".onnx", ".safetensors"))}
    unknown = {key for key in named - files if key not in KEYS and not any(k.startswith(f"{key}.") for k in KEYS)}
    assert not unknown


@each_guide
def test_shown_trainings_are_configurations(guide):
    text = guide.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    ") and "jobs/train.py --config" in line]
    for line in lines:
        words = shlex.split(line, comments=True)
        words = words[words.index("jobs/train.py") + 2 :]
        load_config(str(ROOT / words[0]), words[1:])
    assert lines or guide.parent.name == "docs"


def test_the_method_names_what_implements_it():
    text = (ROOT / "docs/method.md").read_text()
    named = re.findall(r"`(\w+/\w+\.py)`(?::((?:,?\s*`\w+`)+))?", text)
    assert len(named) >= 15
    for file, functions in named:
        source = ROOT / "multas_ray" / file
        assert source.exists(), file
        for function in re.findall(r"\w+", functions):
            assert re.search(rf"^(?:def|class) {function}\b", source.read_text(), re.MULTILINE), f"{file}: {function}"


def test_published_weights_become_a_teacher_as_the_guide_shows(tmp_path, monkeypatch):
    text = (ROOT / "docs/from_multas.md").read_text()
    code = re.search(r"\n\n((?:    .*\n|\n)+?)\n`teachers/det`", text)[1]
    code = re.sub(r"^    ", "", code, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(preset="paper", backbone="resnet50", neck="pafpn", tasks=["det"], pretrained=False)
    torch.save(MultiTaskNet(config, ["cat"], []).state_dict(), "teacher.pth")
    exec(code, {"det_classes": ["cat"]})
    assert load_network("teachers/det")[1].det_classes == ["cat"]
