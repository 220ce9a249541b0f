"""What the guides name is there: files, functions, configuration keys, command lines."""

import re
import shlex
import textwrap

import numpy as np
import pytest
import torch

from multas_ray.checkpoint.weights import load_network
from multas_ray.config import AugmentConfig, Config, ModelConfig, TeachersConfig
from multas_ray.config_docs import sections
from multas_ray.config_file import load_config
from multas_ray.data.collate import make_eval_batch, make_train_batch
from multas_ray.data.describe import count
from multas_ray.data.index import read_index
from multas_ray.data.plan import EvaluationPlan, lay_plan
from multas_ray.data.schema import SCHEMA, DatasetInfo, read_info
from multas_ray.documents import parse_yaml
from multas_ray.model.network import MultiTaskNet
from tests.support.shared import ROOT

WITH_TRAININGS = [ROOT / "README.md", ROOT / "cluster/README.md", ROOT / "docs/guide/data.md"]
GUIDES = [*WITH_TRAININGS, *sorted({*(ROOT / "docs").rglob("*.md")} - {*WITH_TRAININGS})]
KEYS = {f"{path}.{name}".strip(".") for path, section, _ in sections("", Config) for name in section.model_fields}
each_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.relative_to(ROOT)))


@each_guide
def test_links_lead_to_files(guide):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", guide.read_text())
    missing = [link for link in links if "://" not in link and not (guide.parent / link).exists()]
    assert not missing


def _is_module(name: str) -> bool:
    return (ROOT / "multas_ray" / f"{name.replace('.', '/')}.py").exists()


@each_guide
def test_configuration_keys_exist(guide):
    """Everything in backticks, or on a command line, that begins as a key of the configuration does."""
    roots = "|".join(Config.model_fields)
    named = set(re.findall(rf"(?<![\w./-])(?:{roots})\.[a-z_.]+[a-z_]", guide.read_text()))
    files = {key for key in named if key.endswith((".py", ".yaml", ".json", ".html", ".onnx", ".safetensors"))}
    modules = {key for key in named if _is_module(key) or _is_module(key.rpartition(".")[0])}
    prefixes = {key for key in named if any(other.startswith(f"{key}.") for other in KEYS)}
    unknown = named - files - modules - prefixes - KEYS
    assert not unknown


@each_guide
def test_shown_trainings_are_configurations(guide):
    text = guide.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    ") and "jobs/train.py --config" in line]
    for line in lines:
        words = shlex.split(line, comments=True)
        words = words[words.index("jobs/train.py") + 2 :]
        load_config(str(ROOT / words[0]), words[1:])
    assert lines or guide not in WITH_TRAININGS


def test_the_method_names_what_implements_it():
    text = (ROOT / "docs/method.md").read_text()
    named = re.findall(r"`((?:\w+/)+\w+\.py)`(?::((?:,?\s*`\w+`)+))?", text)
    assert len(named) >= 15
    for file, functions in named:
        source = ROOT / file if file.startswith("tests/") else ROOT / "multas_ray" / file
        assert source.exists(), file
        for function in re.findall(r"\w+", functions):
            assert re.search(rf"^(?:def|class) {function}\b", source.read_text(), re.MULTILINE), f"{file}: {function}"


def test_the_data_format_is_as_its_page_says(tmp_path, monkeypatch):
    text = (ROOT / "docs/data.md").read_text()
    table = re.search(r"## Columns\n(.*?)\n\n\*\*", text, re.DOTALL)[1]
    columns = [name for line in table.splitlines()[5:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert columns == SCHEMA.names
    DatasetInfo.model_validate_json(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])

    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert names["schema"] == SCHEMA
    info = read_info("data/mine")
    assert {split: dict(found.rows) for split, found in counts_of(info).items()} == {
        "train": {"none": 0, "det": 1, "seg": 1, "both": 0},
        "val": {"none": 0, "det": 0, "seg": 0, "both": 1},
    }
    index = read_index("data/mine", "train")
    plan = lay_plan(index, usable=["det", "seg"], mixing=None, batch_size=2, steps=1, seed=0, sizes=[64], window=1)
    batch = make_train_batch(index, plan.part(0, 0, 1), AugmentConfig())
    assert sorted(batch.ids) == ["a", "b"]
    assert batch.truth["seg"].values.shape == (1, 64, 64)
    validation = EvaluationPlan(read_index("data/mine", "val"), 4, 64)
    [boxes], [mask] = (
        some.values for some in make_eval_batch(validation.index, validation.part(0, 0, 1)).truth.values()
    )
    assert boxes.boxes.tolist() == [[30, 20, 90, 80]]
    assert np.bincount(mask.ravel()).tolist() == [120 * 160 - 60 * 60, 60 * 60]


def counts_of(info):
    """What jobs/describe.py counts of each split."""
    return {split: count(read_index("data/mine", split), info, lambda rows: None) for split in info.splits}


@pytest.mark.long
def test_published_weights_become_a_teacher_as_the_guide_shows(tmp_path, monkeypatch):
    text = (ROOT / "docs/from_multas.md").read_text()
    code = re.search(r"\n\n((?:    .*\n|\n)+?)\n`teachers/det`", text)[1]
    code = re.sub(r"^    ", "", code, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(preset="paper", backbone="resnet50", neck="pafpn", tasks=["det"], pretrained=False)
    torch.save(MultiTaskNet(config, {"det": ["cat"]}).state_dict(), "teacher.pth")
    exec(code, {"det_classes": ["cat"]})
    assert load_network("teachers/det")[1].det_classes == ["cat"]


def test_teachers_of_the_guide_are_configurations():
    text = (ROOT / "docs" / "guide" / "teachers.md").read_text()
    blocks = [textwrap.dedent(block.strip("\n")) for block in re.findall(r"\n((?: {4}.*\n|\n(?= {4}))+)", text)]
    trees = [parse_yaml(block, "guide") for block in blocks if block.startswith(("teachers:", "det:", "seg:"))]
    assert len(trees) >= 7
    for tree in trees:
        TeachersConfig.model_validate(tree.get("teachers", tree))
