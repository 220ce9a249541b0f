"""The images on which a study's arms disagree most, drawn side by side."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multas_ray.checkpoint.weights import load_network
from multas_ray.config import EvaluateConfig
from multas_ray.data.collate import make_eval_batch
from multas_ray.data.index import read_index
from multas_ray.data.plan import EvaluationPlan
from multas_ray.data.read import read_sample
from multas_ray.data.schema import read_info
from multas_ray.evaluate.evaluator import Prediction, predict
from multas_ray.model.network import MultiTaskNet
from multas_ray.report.overlays import draw_prediction, draw_truth
from multas_ray.report.pictures import SHOWN_SCORE, Palette, grid
from multas_ray.study.plan import Study, Trial
from multas_ray.study.trials import has_network

IMAGES, LOOKED_AT = 6, 512
"""Images shown, and the most that are searched for them."""
MAP = 64
"""Side of the maps that are compared."""
SINGLE = ("det", "seg")
"""Arms that are shown as one: the single-task networks."""


def disagreements(study: Study, trials: Mapping[str, Trial], arms: Sequence[str]) -> bytes | None:
    """A PNG with a row an image and a column an arm, of the seed for which most of these arms' networks are there; None
    if there is nothing to compare."""
    by_seed = [[trials[f"{arm}-{seed}"] for arm in arms] for seed in study.seeds]
    own = max(([trial for trial in all_arms if has_network(trial)] for all_arms in by_seed), key=len)
    if len(own) < 2:
        return None
    return _draw(own[0], {trial.arm: load_network(trial.config.train.run)[0] for trial in own})


def _draw(trial: Trial, networks: Mapping[str, MultiTaskNet]) -> bytes:
    data = trial.config.data
    info = read_info(data.path)
    plan = EvaluationPlan(read_index(data.path, data.val), 32, data.eval_size)
    palette = Palette(info.det_classes, info.seg_classes)
    shown: list[tuple[float, int, list[Prediction]]] = []
    for step in range(min(plan.steps, LOOKED_AT // plan.batch_size)):
        batch = make_eval_batch(plan.index, plan.part(step, 0, 1))
        images = torch.tensor(batch.images)
        found = {arm: predict(network, images, EvaluateConfig()) for arm, network in networks.items()}
        columns = _columns(found)
        for row in range(len(images)):
            own = [predictions[row] for predictions in columns.values()]
            score = disagreement(own)
            if len(shown) < IMAGES or score > shown[-1][0]:
                shown = sorted([*shown, (score, int(batch.part.rows[row]), own)], key=lambda each: -each[0])[:IMAGES]
    rows = []
    for _, number, own in shown:
        _, sample = read_sample(plan.index, number)
        answers = [draw_prediction(sample["image"], prediction, palette) for prediction in own]
        rows.append([draw_truth(sample, palette), *answers])
    return grid(rows, ["ground truth", *columns], palette)


def _columns(found: Mapping[str, list[Prediction]]) -> dict[str, list[Prediction]]:
    """Each arm's predictions, the two single-task networks' as one."""
    if not all(arm in found for arm in SINGLE):
        return dict(found)
    det, seg = (found[arm] for arm in SINGLE)
    single: list[Prediction] = [{**a, **b} for a, b in zip(det, seg, strict=True)]
    return {"single-task": single} | {arm: own for arm, own in found.items() if arm not in SINGLE}


def disagreement(predictions: Sequence[Prediction]) -> float:
    """How much predictions of one image differ: the share of pixels to which two of them give different classes, the
    mean over pairs; of boxes, each pixel has the class of the surest that covers it. The sum over both tasks."""
    maps = [torch.stack([_boxes_map(prediction), _pixels_map(prediction)]) for prediction in predictions]
    return float(np.mean([float((a != b).float().mean(dim=(1, 2)).sum()) for a, b in combinations(maps, 2)] or [0.0]))


def _boxes_map(prediction: Prediction) -> Tensor:
    """(MAP, MAP): 1 + class, 0 where no box is."""
    drawn = torch.zeros(MAP, MAP, dtype=torch.int64)
    found = prediction.get("det")
    if found is not None:
        for place in found.scores.argsort():
            if found.scores[place] >= SHOWN_SCORE:
                x1, y1, x2, y2 = (found.boxes[place] * MAP).round().int().tolist()
                drawn[y1:y2, x1:x2] = 1 + int(found.labels[place])
    return drawn


def _pixels_map(prediction: Prediction) -> Tensor:
    if "seg" not in prediction:
        return torch.zeros(MAP, MAP, dtype=torch.int64)
    return F.interpolate(prediction["seg"][None].float(), (MAP, MAP), mode="bilinear")[0].argmax(0)
