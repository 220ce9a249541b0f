"""What `train.precision: auto` comes to: by the workers' hardware, once for a run, whatever it resumes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from multas_ray import resolve
from multas_ray.errors import UserError
from multas_ray.model.precision import bfloat16_slowdown, has_bfloat16
from multas_ray.report.run_report import run_report
from multas_ray.train.run import train
from tests.support.shared import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def hardware(monkeypatch):
    """Sets whether this machine has bfloat16."""

    def set_to(has: bool) -> None:
        monkeypatch.setattr(resolve, "has_bfloat16", lambda device: has)

    return set_to


@pytest.mark.parametrize(
    ("onednn", "instructions", "expected"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_cpu_has_bfloat16_where_onednn_uses_its_instructions(monkeypatch, onednn, instructions, expected):
    """oneDNN alone is not enough: with AVX-512 it emulates bfloat16 and says that it supports it."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    assert has_bfloat16(CPU) is expected
    # No such question on ARM, whose answer oneDNN's library knows.
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert has_bfloat16(CPU) is onednn


@pytest.mark.parametrize(("major", "expected"), [(7, False), (8, True), (9, True)])
def test_a_gpu_has_bfloat16_from_compute_capability_8_on(monkeypatch, major, expected):
    class Properties:
        pass

    Properties.major = major
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert has_bfloat16(torch.device("cuda")) is expected


@pytest.mark.long
def test_a_cpu_limited_to_avx2_trains_in_float32():
    """As oneDNN is told so, a machine with AVX2 alone is imitated."""
    code = "import torch; from multas_ray.model.precision import has_bfloat16; print(has_bfloat16(torch.device('cpu')))"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_auto_becomes_what_the_hardware_has_and_a_choice_stays(make_config, hardware, capsys):
    auto = make_config(train={"precision": "auto"})
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        hardware(has)
        assert resolve.resolve_precision(auto).train.precision == expected
        assert resolve.resolve_precision(make_config(train={"precision": "float32"})).train.precision == "float32"
    assert auto.train.precision == "auto", "what the user wrote stays as it is"
    assert capsys.readouterr().out == ""


def test_bfloat16_where_it_is_emulated_says_what_it_costs(make_config, hardware, monkeypatch, capsys):
    chosen = make_config(train={"precision": "bfloat16"})
    monkeypatch.setattr(resolve, "bfloat16_slowdown", lambda device: 12.34)
    hardware(True)
    assert resolve.resolve_precision(chosen).train.precision == "bfloat16"
    assert capsys.readouterr().out == ""
    hardware(False)
    assert resolve.resolve_precision(chosen).train.precision == "bfloat16"
    (line,) = capsys.readouterr().out.splitlines()
    assert line == ("train.precision: bfloat16 is emulated here, 12.3 times slower than float32; auto chooses float32")
    resolve.resolve_precision(make_config(train={"precision": "auto"}), resumed="bfloat16")
    assert capsys.readouterr().out.endswith("slower than float32; the run began with it\n")


def test_the_slowdown_is_a_ratio_of_measured_times(monkeypatch):
    """Of a clock by which each float32 convolution takes 2 seconds and each bfloat16 one 10."""
    seconds = iter([0, 2] * 3 + [0, 10] * 3)
    monkeypatch.setattr("multas_ray.model.precision.perf_counter", lambda: next(seconds))
    assert bfloat16_slowdown(CPU) == 5


def test_a_run_keeps_its_precision_on_other_hardware(make_config, hardware, started_ray, tmp_path):
    run = tmp_path / "run"

    def config(steps: int, precision: str = "auto"):
        return make_config(train={"run": str(run), "steps": steps, "precision": precision})

    hardware(True)
    train(config(2))
    hardware(False)
    with pytest.raises(UserError, match=r"train\.precision: float32, but .* has been trained in bfloat16"):
        train(config(4, "float32"))
    train(config(4))
    attempts = [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]
    assert [(attempt["from_step"], attempt["precision"]) for attempt in attempts] == [(0, "bfloat16"), (2, "bfloat16")]
    assert "precision: auto" in (run / "config.yaml").read_text(), "as the user wrote it"
    assert Path(run_report(run).path).read_text().count("<td>bfloat16</td>") == 2


@pytest.mark.slow
def test_a_run_of_before_that_names_its_precision_goes_on_with_auto(make_config, hardware, started_ray, tmp_path):
    """Its attempts do not tell, its configuration does."""
    run = tmp_path / "run"
    hardware(True)
    train(make_config(train={"run": str(run), "steps": 2, "precision": "float32"}))
    attempts = run / "attempts.jsonl"
    old = json.loads(attempts.read_text())
    del old["precision"]
    attempts.write_text(json.dumps(old) + "\n")
    train(make_config(train={"run": str(run), "steps": 3, "precision": "auto"}))
    assert json.loads(attempts.read_text().splitlines()[-1])["precision"] == "float32"


ASK = """
import json, os, sys
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from multas_ray import resolve
from multas_ray.config_file import load_config

config = load_config(sys.argv[1], ["train.resources.labels={role: train}"])

def ask():
    return resolve._on_worker(config, lambda device: [str(device), ray.get_runtime_context().get_node_id()])

answers = [ask()]
group = placement_group([{"CPU": 0.01}])
within = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
answers.append(ray.get(ray.remote(num_cpus=0)(ask).options(scheduling_strategy=within).remote(), timeout=60))
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_on_a_cluster_a_node_with_the_workers_resources_is_asked(cluster, make_config, tmp_path):
    """Also from a trial of a study, whose placement group has no room for the question."""
    node = cluster.add_node(num_cpus=2, labels={"role": "train"})
    file = tmp_path / "config.yaml"
    file.write_text(make_config().to_yaml())
    # In a process of its own: this one may be connected to another Ray.
    command = [sys.executable, "-c", ASK, str(file)]
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [["cpu", node.node_id]] * 2
