"""Runs over several data sets with classes of their own."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from multas_ray.config_file import parse_config
from multas_ray.data.row import Row
from multas_ray.data.writer import write_dataset
from multas_ray.formats import scenes
from multas_ray.formats.source import Source, Split
from multas_ray.run_folder import read_metrics
from multas_ray.train.run import train
from tests.support.runs import losses


class Only:
    """Reads scenes with the annotation of one task, and of some of its classes."""

    def __init__(self, read, task: str, kept: list[int]) -> None:
        self.read, self.task, self.kept = read, task, kept

    def __call__(self, number: int) -> Row:
        row = self.read(number).only(self.task)
        if self.task == "det":
            inside = np.isin(row.labels, self.kept)
            row.boxes, row.difficult = row.boxes[inside], row.difficult[inside]
            row.labels = np.array([self.kept.index(label) for label in row.labels[inside]], np.int32)
        elif row.mask is not None:
            values = np.zeros(256, np.uint8)
            values[255] = 255
            values[[label + 1 for label in self.kept]] = range(1, len(self.kept) + 1)
            row.mask = values[row.mask]
        return row


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Boxes of two of the scenes' classes, and masks of two, of which one is in both."""
    at, made = tmp_path_factory.mktemp("sources"), {}
    for name, task, kept in (("boxes", "det", [0, 1]), ("masks", "seg", [1, 2])):
        source = scenes.read(scenes.Options(train=12, val=6, size=64, seed=len(made)))
        splits = {split: Split(of.items, Only(of.read, task, kept)) for split, of in source.splits.items()}
        names = [scenes.CLASSES[label] for label in kept]
        classes = {"det": names if task == "det" else [], "seg": ["background", *names] if task == "seg" else []}
        write_dataset(at / name, Source(name, classes, splits))
        made[name] = {"path": str(at / name)}
    return made


def config_of(sources, folder: Path, **changes):
    tree = {
        "data": {
            **{"sources": sources, "size": 64, "mixing": {"boxes": 3, "masks": 3}},
            **{"det_classes": list(scenes.CLASSES), "seg_classes": ["background", *scenes.CLASSES]},
        },
        "model": {"backbone": "efficientnet_lite0", "pretrained": False, "width": 16, "norm": "group"},
        "loss": {"weak_det": 0.5, "weak_seg": 0.5},
        "train": {"run": str(folder), "steps": 4, "batch_size": 6, "precision": "float32", "log_every_steps": 1},
    }
    return parse_config(tree, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


@pytest.mark.slow
def test_a_run_over_two_data_sets_scores_each_and_both(started_ray, sources, tmp_path):
    result = train(config_of(sources, tmp_path / "run", **{"train.workers": 2}))
    final = result["final"]
    assert {"boxes/det/AP", "masks/seg/mIoU", "det/AP", "seg/mIoU", "score"} <= final.keys()
    assert final["boxes/det/AP"] == final["det/AP"], "boxes are in one of them only"
    assert not any(name.startswith(("boxes/seg", "masks/det")) and "images" not in name for name in final)
    lines = read_metrics(tmp_path / "run")
    assert all(np.isfinite(line["loss/total"]) for line in lines if "loss/total" in line)
    assert {"loss/weak_det", "loss/weak_seg", "loss/det_cls", "loss/seg"} <= lines[0].keys()
    # Third class: nobody looked for it in boxes, and a mask has it.
    assert final[f"det/images/{scenes.CLASSES[2]}"] == 0
    assert final[f"det/images/{scenes.CLASSES[0]}"] == 6
    attempt = json.loads((tmp_path / "run" / "attempts.jsonl").read_text().splitlines()[0])
    assert list(attempt["data"]) == ["train/boxes", "train/masks", "val/boxes", "val/masks"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Metrics by data set" in report
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert list(written["data"]["sources"]) == ["boxes", "masks"]


@pytest.mark.slow
def test_one_worker_trains_as_two_and_a_resumed_run_as_a_whole_one(started_ray, sources, tmp_path):
    one = config_of(sources, tmp_path / "one", **{"data.augment.photometric": False})
    two = config_of(sources, tmp_path / "two", **{"data.augment.photometric": False, "train.workers": 2})
    first = [train(config) and losses(config.train.run) for config in (one, two)]
    np.testing.assert_allclose(first[0], first[1], rtol=1e-4)
