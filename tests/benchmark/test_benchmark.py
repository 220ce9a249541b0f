"""What a benchmark compares must be the same, and its figures must be kept."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import cloudpickle

from benchmarks import published, simulated
from benchmarks.index import made_up_index
from benchmarks.placements import prepare_images
from benchmarks.simulated import CLASSES, Case, SimulatedTeacher, simulate, start_simulated_pool
from benchmarks.timing import alternate, write_figures
from multas_ray.config import LossConfig, ModelConfig
from multas_ray.data.schema import read_info
from multas_ray.model.network import MultiTaskNet
from multas_ray.tasks.detection.anchors import anchors
from multas_ray.tasks.detection.loss import detection_losses
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.teacher.teacher import arrays_of, digests
from tests.support.shared import ROOT


def test_the_published_way_computes_the_same_losses_and_gradients() -> None:
    torch.manual_seed(0)
    grid = anchors(96, 96)
    torch.testing.assert_close(published.listed_anchors(96), grid)
    corner = torch.rand(2, 3, 2) * 0.5
    boxes, labels = torch.cat([corner, corner + 0.1 + 0.4 * torch.rand(2, 3, 2)], dim=2), torch.randint(0, 5, (2, 3))
    truth = UnitBoxes(boxes, labels, torch.zeros(2, 3, dtype=torch.bool))
    grads = []
    for batched in (True, False):
        torch.manual_seed(1)
        cls, box = torch.randn(2, len(grid), 5, requires_grad=True), torch.randn(2, len(grid), 4, requires_grad=True)
        if batched:
            terms = detection_losses(DetectionOutput(cls, box), truth, grid, LossConfig())
            total = terms["det_box"].divided() + terms["det_cls"].divided()
        else:
            total = torch.stack(published.losses(cls, box, 96, list(boxes), list(labels))).sum()
        total.backward()
        grads.append((total, cls.grad, box.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_variants_take_turns() -> None:
    turns: list[str] = []
    seconds = alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, repeats=2, rounds=2)
    assert "".join(turns) == "ab" + "aabb" * 2
    assert seconds.keys() == {"a", "b"}


def test_figures_are_added_to_those_of_other_benchmarks(tmp_path: Path) -> None:
    write_figures(tmp_path / "out", "loss", {"x": 1.0})
    write_figures(tmp_path / "out", "data", {"y": 2.0})
    file = write_figures(tmp_path / "out", "loss", {"z": 3.0})
    assert json.loads(file.read_text()) == {"loss": {"z": 3.0}, "data": {"y": 2.0}}


def test_simulated_teachers_answer_in_the_shapes_of_real_ones_and_take_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(simulated, "perf_counter", lambda: 7.0)
    monkeypatch.setattr(simulated, "sleep", slept.append)
    names = [str(number) for number in range(CLASSES)]
    config = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16)
    images = np.zeros((2, 3, 64, 64), np.uint8)
    with torch.no_grad():
        real = MultiTaskNet(config, {"det": names, "seg": ["background", *names]}).eval()(torch.tensor(images))
    for task in ("det", "seg"):
        answer = SimulatedTeacher(task, 0.05, 64).load("cpu")(images)
        assert slept.pop() == 0.05
        assert [array.shape for array in arrays_of(answer.dense)] == [tuple(t.shape) for t in arrays_of(real[task])]
        np.testing.assert_array_equal(answer.digests, digests(images))


@pytest.mark.slow
def test_simulated_students_go_at_the_pace_of_slow_teachers(started_ray, scenes_path) -> None:
    cases = [Case(start_simulated_pool(seconds, 1, 64), 1, warmup=6, steps=6) for seconds in (0.01, 0.4)]
    fast, slow = simulate(scenes_path, 64, 2, cases, parallel=1)
    assert fast.step_s >= 0.2
    # Two workers, one replica: 0.8 seconds of answers a step, whatever the machine. Upper bounds are the benchmark's.
    assert slow.step_s > 0.6


@pytest.mark.ray
def test_without_real_images_the_benchmark_makes_scenes(tmp_path: Path) -> None:
    assert "generated scenes" in prepare_images(tmp_path / "data", tmp_path / "nowhere")
    info = read_info(str(tmp_path / "data"))
    assert info.splits == {"train": {"det": 800, "seg": 800}, "val": {"both": 64}}


def test_the_made_up_index_is_one_of_sorted_row_groups() -> None:
    index = made_up_index(rows=4000, groups=100, files=20)
    rows = np.arange(4000)
    file, group, place = index.locate(rows)
    np.testing.assert_array_equal((file * 5 + group) * 40 + place, rows)
    kinds = index.kind(rows).reshape(100, 40)
    np.testing.assert_array_equal(kinds, np.sort(kinds, axis=1))
    assert set(np.unique(kinds)) == {0, 1, 2, 3}
    assert (np.diff(index.run_starts) > 0).all()


RECEIVE = """
import sys
from ray import cloudpickle
student, teacher = cloudpickle.load(sys.stdin.buffer)
assert "benchmarks" not in sys.modules
print(student.__name__, teacher.load("cpu").__name__)
"""


@pytest.mark.ray
def test_what_ray_sends_of_a_benchmark_needs_no_benchmarks_there(tmp_path: Path) -> None:
    sent = cloudpickle.dumps((simulated._student, SimulatedTeacher("det", 0.0, 64)))
    (tmp_path / "multas_ray").symlink_to(ROOT / "multas_ray")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    received = subprocess.run(
        [sys.executable, "-c", RECEIVE], input=sent, cwd=tmp_path, env=environment, capture_output=True
    )
    assert received.stdout.split() == [b"_student", b"answer"], received.stderr.decode()


def test_the_job_finds_its_benchmarks_from_anywhere(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, ROOT / "jobs" / "benchmark.py", "loss", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_does_without_its_benchmarks() -> None:
    imports = re.compile(r"^\s*(from|import) benchmarks\b", re.MULTILINE)
    importing = [file for file in (ROOT / "multas_ray").rglob("*.py") if imports.search(file.read_text())]
    assert importing == [], "the wheel has no benchmarks"
