"""Scoring a checkpoint on a split, on several actors."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from multas_ray.checkpoint.weights import load_network
from multas_ray.data.collate import make_eval_batch
from multas_ray.data.index import read_index
from multas_ray.data.plan import EvaluationPlan, Part
from multas_ray.data.row import Row
from multas_ray.data.writer import write_dataset
from multas_ray.deploy import evaluate as scoring
from multas_ray.deploy.evaluate import draw_worst as draw
from multas_ray.deploy.evaluate import image_score, score_checkpoint
from multas_ray.deploy.workers import Workers
from multas_ray.errors import UserError
from multas_ray.evaluate.evaluator import evaluate
from multas_ray.formats import scenes
from multas_ray.formats.source import Split, with_background

FEWER = list(reversed(scenes.CLASSES[:-1]))
"""Classes of the scenes, without `ring` and in another order."""


@pytest.mark.parametrize(("split", "protocol"), [("val", "coco"), ("train", "voc2012")])
def test_two_actors_score_as_one_process(started_ray, checkpoint, scenes_path, tmp_path, split, protocol, monkeypatch):
    network, meta = load_network(checkpoint)
    plan = EvaluationPlan(read_index(scenes_path, split), meta.evaluate.batch_size, meta.size)
    batches = (make_eval_batch(plan.index, plan.part(step, 0, 1)) for step in range(plan.steps))
    expected = evaluate(network, batches, meta.evaluate.model_copy(update={"protocol": protocol}))
    told, drawn = [], []
    monkeypatch.setattr(
        scoring, "draw_worst", lambda own, plan, chosen: drawn.append((plan, chosen)) or draw(own, plan, chosen)
    )
    result = score_checkpoint(
        checkpoint,
        scenes_path,
        split,
        str(tmp_path),
        protocol=protocol,
        workers=Workers(2),
        worst=3,
        progress=lambda done, total: told.append((done, total)),
    )
    assert expected["score"] > 0
    assert result["metrics"] == pytest.approx(expected, abs=1e-3)
    assert told[-1] == (len(plan.index), len(plan.index))
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == result["metrics"]
    assert "Worst images" in (tmp_path / "report.html").read_text()
    ((_, chosen),) = drawn
    worst_first = [score for _, score in chosen]
    assert len(chosen) == 3
    assert worst_first == sorted(worst_first)
    none, seed = np.zeros(1, np.int64), np.zeros(1, np.uint64)
    alone = []
    for row in range(len(plan.index)):
        batch = make_eval_batch(plan.index, Part(0, 0, plan.size, np.array([row]), none, none, seed))
        alone.append(image_score(evaluate(network, [batch], meta.evaluate.model_copy(update={"protocol": "coco"}))))
    assert worst_first == pytest.approx(sorted(score for score in alone if score == score)[:3], abs=1e-3)


def _without_rings(read: Callable[[int], Row], number: int) -> Row:
    """A scene with its classes in another order, whose rings have no boxes and are background."""
    row = read(number)
    order = [scenes.CLASSES.index(name) for name in FEWER]
    kept = np.isin(row.labels, order)
    labels = np.array([order.index(label) for label in row.labels[kept]], np.int32)
    table = np.zeros(256, np.uint8)
    table[[1 + label for label in order]] = 1 + np.arange(len(order))
    return replace(row, boxes=row.boxes[kept], labels=labels, difficult=row.difficult[kept], mask=table[row.mask])


def test_classes_are_found_by_name_and_those_that_the_data_does_not_list_are_not_scored(
    started_ray, checkpoint, scenes_path, tmp_path
):
    """The images are those of `scenes_path`."""
    fewer = str(tmp_path / "fewer")
    source = scenes.read(scenes.Options(train=50, val=11, size=64, seed=7))
    val = source.splits["val"]
    splits = {"val": Split(val.items, partial(_without_rings, val.read))}
    write_dataset(fewer, replace(source, classes=with_background(FEWER), splits=splits))

    expected = score_checkpoint(checkpoint, scenes_path, "val", str(tmp_path / "all"))["metrics"]
    result = score_checkpoint(checkpoint, fewer, "val", str(tmp_path / "some"))
    boxes = {name: value for name, value in expected.items() if name.startswith("det/AP/") and "ring" not in name}
    assert len(boxes) == len(FEWER)
    assert sum(boxes.values()) > 0
    found = {name: value for name, value in result["metrics"].items() if name.startswith("det/AP/")}
    assert found == pytest.approx(boxes, abs=1e-3)
    # Background itself is not scored: its pixels may be rings.
    pixels = {name for name in result["metrics"] if name.startswith("seg/IoU/")}
    assert pixels == {f"seg/IoU/{name}" for name in FEWER}
    assert result["images"] == 11
    assert (tmp_path / "some" / "worst.png").stat().st_size > 0


def test_other_classes_are_refused(checkpoint, tmp_path):
    other = str(tmp_path / "other")
    classes = [f"other {name}" for name in scenes.CLASSES]
    source = scenes.read(scenes.Options(train=0, val=2, size=64))
    write_dataset(other, replace(source, classes=with_background(classes)))
    with pytest.raises(
        UserError,
        match=r"does not know the det class 'other circle'; its det classes are circle, .*, those of .*other are other",
    ):
        score_checkpoint(checkpoint, other, "val", str(tmp_path / "out"))
