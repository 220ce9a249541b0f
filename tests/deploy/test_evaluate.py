"""Scoring a checkpoint on a split, on several actors."""

import json
from dataclasses import replace

import numpy as np
import pytest

from multas_ray.checkpoint.weights import load_network
from multas_ray.data.collate import make_eval_batch
from multas_ray.data.index import read_index
from multas_ray.data.plan import EvaluationPlan, Part
from multas_ray.data.writer import write_dataset
from multas_ray.deploy import evaluate as scoring
from multas_ray.deploy.evaluate import draw_worst as draw
from multas_ray.deploy.evaluate import image_score, score_checkpoint
from multas_ray.deploy.workers import Workers
from multas_ray.errors import UserError
from multas_ray.evaluate.evaluator import evaluate
from multas_ray.formats import scenes
from multas_ray.formats.source import with_background


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


def test_other_classes_are_refused(checkpoint, tmp_path):
    other = str(tmp_path / "other")
    classes = [f"other {name}" for name in scenes.CLASSES]
    source = scenes.read(scenes.Options(train=0, val=2, size=64))
    write_dataset(other, replace(source, classes=with_background(classes)))
    with pytest.raises(UserError, match=r"its det classes are .*; those of .*other"):
        score_checkpoint(checkpoint, other, "val", str(tmp_path / "out"))
