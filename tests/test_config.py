from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from multas_ray.config_file import load_config, parse_config
from multas_ray.errors import UserError
from multas_ray.study.layout import lay_out, load_study

SHIPPED = sorted((Path(__file__).parent.parent / "jobs" / "configs").rglob("*.yaml"))
STUDIES = [file for file in SHIPPED if file.stem.endswith("_study")]
CONFIGS = [file for file in SHIPPED if file not in STUDIES]
MINIMAL = {"data": {"path": "data/x"}, "train": {"run": "runs/x", "steps": 10}}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_configuration_is_valid(file):
    config = load_config(file)
    assert parse_config(yaml.safe_load(config.to_yaml())) == config, "what is saved repeats the run"


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_shipped_study_is_valid(file):
    study = load_study(file)
    assert len(lay_out(study)) == len(study.arms) * len(study.seeds)


def test_overrides_reach_any_depth(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    config = load_config(
        file, ["optim.lr=1e-3", "teachers.det.checkpoint=runs/t", "data.size=[256, 320]", "optim.clip_norm=null"]
    )
    assert config.optim.lr == 0.001
    assert config.teachers.det is not None
    assert config.teachers.det.source == "runs/t"
    assert config.data.sizes == [256, 320]
    assert config.optim.clip_norm is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.worker=2", ["train.worker", "no such key", "workers"]),
        ("teachers.det.checkpont=x", ["teachers.det.checkpont", "source"]),
        ("optim.lr=-1", ["optim.lr", "greater than 0", "-1"]),
        ("optim.name=adam", ["optim.name", "adamw", "sgd", "adam"]),
        ("data.size=100", ["data.size", "multiple of 32", "100"]),
        ("model.tasks=[det,det]", ["model.tasks", "det, seg"]),
        ("train.workers=99", ["train.workers", "99", "16"]),
        ("data.mixing={det: 3}", ["data.mixing", "3", "16"]),
        ("model.norm=sync", ["model.norm", "GPU"]),
        ("model.neck=pafpn", ["model.neck", "paper"]),
        ("distill.det.defeat=1", ["distill.det.defeat", "annotated or all"]),
        ("nonsense", ["nonsense", "dotted.path=value"]),
        ("train.steps.more=1", ["train.steps.more=1", "not a section"]),
    ],
)
def test_a_wrong_value_is_named_in_one_line(override, words, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(UserError) as raised:
        load_config(file, [override])
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: [", "not YAML"),
        ("- 1", "a mapping of sections"),
        ("data: {path: x}\ntrain: {run: r}", "train.steps: missing"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(text, words, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as raised:
        load_config(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": {"seg": {"path": "a"}}}, "data.sources: 'seg': a source's name .* none of none, det, seg"),
        ({"sources": {"loss": {"path": "a"}}}, "data.sources: 'loss': .* loss, time"),
        ({"sources": {"a/b": {"path": "a"}}}, "data.sources: 'a/b': a source's name has letters"),
        (
            {"sources": {"a": {"path": "a"}, "b": {"path": "b", "train": None}}, "mixing": {"a": 8, "b": 8}},
            "mixing: natural, or numbers of none, det, seg, both or a; not",
        ),
    ],
)
def test_names_of_sources_are_none_of_metrics_and_only_those_to_train_on_are_mixed(changes, words):
    with pytest.raises(UserError, match=words):
        parse_config(MINIMAL | {"data": changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"path": "x", "size": [64, 320]}}, "data.size: 64 pixels, .* more than 64"),
        ({"train": {"run": "r", "steps": 1, "workers": 9}}, "train.batch_size: 16 rows over 9 workers"),
    ],
)
def test_batch_statistics_of_the_paper_s_network_need_more_than_one_value(changes, words):
    with pytest.raises(UserError, match=words):
        parse_config(MINIMAL | changes | {"model": {"preset": "paper"}})
    parse_config(MINIMAL | changes | {"model": {"preset": "paper", "norm": "group"}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teachers": {"placement": "ema", "det": {"checkpoint": "x"}}}, "teachers.det: set, but .* teaches itself"),
        ({"teachers": {"placement": "ema"}, "distill": {"det": {"pdf": 1}}}, "features are compared with a teacher's"),
        ({"distill": {"start": 1.0}}, "distill.start"),
    ],
)
def test_what_a_network_that_teaches_itself_cannot_have(changes, words):
    with pytest.raises(UserError, match=words):
        parse_config(MINIMAL | changes)


def test_a_network_that_teaches_itself_is_taught_all_its_tasks():
    config = parse_config(MINIMAL | {"teachers": {"placement": "ema"}, "model": {"tasks": ["seg"]}})
    assert config.distilled_tasks() == ["seg"]
    assert parse_config(MINIMAL).distilled_tasks() == []


def test_words_and_numbers_are_read_as_they_look(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "data: {path: on, val: no}\ntrain: {run: trueish, steps: 1, resume: false}\n"
        "distill: {det: {on: all}}\noptim: {lr: 1e-3, weight_decay: .5, clip_norm: 2}\n"
    )
    config = load_config(file, ["train.max_failures=0", "distill.seg.on=annotated", "loss.seg=1e1"])
    assert (config.data.path, config.data.val, config.train.run, config.train.resume) == ("on", "no", "trueish", False)
    assert (config.distill.det.on, config.distill.seg.on, config.loss.seg) == ("all", "annotated", 10)
    assert (config.optim.lr, config.optim.weight_decay, config.optim.clip_norm) == (0.001, 0.5, 2)


def test_the_model_follows_preset_and_size():
    tree = {"data": {"path": "x"}, "train": {"run": "r", "steps": 1}}
    plain = parse_config(tree)
    assert (plain.model.width, plain.model.levels) == (128, 4)
    paper = parse_config(tree | {"model": {"preset": "paper"}, "data": {"path": "x", "size": [384, 640, 512]}})
    assert (paper.model.width, paper.model.levels) == (256, 5)


def test_yaml_cannot_run_code(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data: !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="not YAML"):
        load_config(file)


def test_paths_are_made_absolute_and_uris_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = ["data.path=s3://bucket/data", "train.run=runs/a", "teachers.store=targets"]
    config = parse_config({}, [*places, "train.steps=10"])
    absolute = config.absolute()
    assert absolute.data.path == "s3://bucket/data"
    assert absolute.train.run == str(tmp_path / "runs" / "a")
    assert absolute.teachers.store == str(tmp_path / "targets")
    assert config.train.run == "runs/a", "the original is left alone"


def test_a_part_given_by_some_of_its_keys_keeps_its_own_defaults(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: {path: d}\nmodel: {backbone: resnet18}\ntrain: {run: r, steps: 1}\n")
    labels = ["{labels: {role: a}}", "{labels: {role: b}}"]
    config = load_config(file, [f"data.resources={labels[0]}", f"teachers.resources={labels[1]}"])
    assert (config.data.resources.cpu, config.data.resources.labels) == (0.25, {"role": "a"})
    assert (config.teachers.resources.cpu, config.teachers.resources.labels) == (0.5, {"role": "b"})
    assert load_config(file, ["teachers.resources={cpu: 2}"]).teachers.resources.cpu == 2


def test_a_configuration_stays_as_it_was_written():
    config = parse_config({}, ["data.path=data/x", "train.run=runs/x", "train.steps=10"])
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 20
    assert config.train.steps == 10
    assert config.absolute().data.path != config.data.path == "data/x"
