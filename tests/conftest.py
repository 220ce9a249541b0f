"""What several tests need: a small data set of scenes with every task mask, and a Ray of this session."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from hypothesis import settings
from pyarrow import fs
from ray.cluster_utils import Cluster

from multas_ray.checkpoint.folder import Meta
from multas_ray.checkpoint.weights import write_checkpoint
from multas_ray.config import Config, ModelConfig
from multas_ray.config_file import parse_config
from multas_ray.data.row import Row
from multas_ray.data.writer import write_dataset
from multas_ray.formats import scenes
from multas_ray.formats.source import Split
from multas_ray.model.network import MultiTaskNet
from multas_ray.ray_setup import start_ray
from tests.support.processes import PATIENCE

TRAIN_ROWS, VAL_ROWS = 50, 11
os.environ.setdefault("WANDB_MODE", "offline")
# Threads of several busy processes get into each other's way.
torch.set_num_threads(1)
# Hypothesis' own profile for CI draws the same examples each time, so that a failure is one of the change.
settings.register_profile("few", deadline=None, max_examples=20)
settings.register_profile("many", settings.get_profile("ci"), deadline=None, max_examples=200)
settings.load_profile("many" if os.environ.get("CI") == "true" else "few")


RAY_FIXTURES = {"started_ray", "cluster"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses a fixture of Ray's is one of the layer `ray`. A slow one waits for several jobs."""
    for item in items:
        if RAY_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(2 * PATIENCE))


@pytest.fixture(autouse=True)
def _no_ray_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the layer `unit` cannot start Ray."""
    if request.node.get_closest_marker("ray") is None:
        monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("starts Ray: mark this test with `ray`"))


def _partly_annotated(read: Callable[[int], Row], number: int) -> Row:
    """A scene that is annotated for det, seg, both and none in turns."""
    row = read(number)
    return row if number % 4 == 2 else row.only({0: "det", 1: "seg"}.get(number % 4))


@pytest.fixture(scope="session")
def scenes_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of 50 training scenes (13 det, 13 seg, 12 both, 12 none) and 11 validation scenes, 64 x 64 pixels."""
    path = str(tmp_path_factory.mktemp("data") / "scenes")
    source = scenes.read(scenes.Options(train=TRAIN_ROWS, val=VAL_ROWS, size=64, seed=7))
    train = source.splits["train"]
    partly = Split(train.items, partial(_partly_annotated, train.read))
    write_dataset(path, replace(source, splits={**source.splits, "train": partly}), command="test")
    return path


@pytest.fixture(scope="session")
def started_ray() -> Iterator[None]:
    """A Ray on this machine."""
    start_ray(8)
    yield
    ray.shutdown()


@pytest.fixture
def cluster(monkeypatch, tmp_path_factory):
    """A head node on this machine, to which others can be added, and which notices their death in a second."""
    health = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3", "initial_delay_ms": "500"}
    for name, value in health.items():
        monkeypatch.setenv(f"RAY_health_check_{name}", value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    head = {"num_cpus": 8, "include_dashboard": True, "dashboard_port": 0}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="session")
def random_teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Checkpoints of single-task networks for the scenes, with random weights: `teachers.det` and `teachers.seg`."""
    teachers = {}
    for task in ("det", "seg"):
        torch.manual_seed(1)
        config = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16, tasks=[task])
        network = MultiTaskNet(config, {"det": scenes.CLASSES, "seg": ["background", *scenes.CLASSES]})
        folder = tmp_path_factory.mktemp(task)
        det_classes, seg_classes = list(network.det_classes), list(network.seg_classes)
        meta = Meta(step=1, model=config, det_classes=det_classes, seg_classes=seg_classes, size=64, metrics={})
        write_checkpoint(folder, network.state_dict(), {}, meta)
        teachers[task] = {"checkpoint": str(folder)}
    return teachers


@pytest.fixture
def make_config(scenes_path: str, tmp_path: Path) -> Callable[..., Config]:
    """Makes the configuration of a tiny run on the scenes; keyword arguments replace whole sections' keys."""

    def make(**sections: dict[str, Any]) -> Config:
        tree: dict[str, dict[str, Any]] = {
            "data": {"path": scenes_path, "size": 64, "workers": 1},
            "model": {"backbone": "efficientnet_lite0", "pretrained": False, "width": 16, "norm": "group"},
            "optim": {"warmup_steps": 2},
            "train": {"run": str(tmp_path / "run"), "steps": 6, "batch_size": 8, "log_every_steps": 1}
            | {"precision": "float32"},
            "tracking": {"wandb": "disabled"},
        }
        for name, values in sections.items():
            tree[name] = tree.get(name, {}) | values
        return parse_config(tree)

    return make


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3 server on this machine: a URI with `{}` for the path."""
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    # Imported here: it takes seconds.
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True).create_dir("bucket")
    yield "s3://bucket/{}?endpoint_override=" + endpoint
    server.stop()
