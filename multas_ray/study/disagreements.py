"""The images on which a study's arms disagree most, drawn side by side."""

from collections.abc import Iterator, Mapping, Sequence
from heapq import nlargest
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multas_ray.checkpoint.weights import load_network
from multas_ray.config import EvaluateConfig
from multas_ray.data.collate import make_eval_batch
from multas_ray.data.plan import EvaluationPlan
from multas_ray.data.read import read_sample
from multas_ray.data.sources import read_sources
from multas_ray.evaluate.evaluator import Prediction, predict
from multas_ray.model.network import MultiTaskNet
from multas_ray.report.overlays import draw_prediction, draw_truth
from multas_ray.report.pictures import SHOWN_SCORE, Palette, grid
from multas_ray.study.layout import Study, Trial
from multas_ray.study.results import has_network

IMAGES, SEARCHED_IMAGES = 6, 512
"""Images shown, and the most that are searched for them."""
BATCH_SIZE = 32
MAP_SIZE = 64
"""Side in pixels of the maps that are compared."""
SINGLE = ("det", "seg")
"""Single-task arms, whose networks are shown as one column."""


def disagreements(study: Study, trials: Mapping[str, Trial], arms: Sequence[str]) -> bytes | None:
    """Draw the images on which arms disagree most: one row per image, one column per arm, beside the ground truth.

    The networks are those of the seed for which most of the arms have one; of each task, those that know the most
    classes.

    Returns:
        A PNG; None if there are fewer than two such networks, or no image.
    """
    by_seed = [[trials[f"{arm}-{seed}"] for arm in arms] for seed in study.seeds]
    trained = max(([trial for trial in of_seed if has_network(trial)] for of_seed in by_seed), key=len)
    if len(trained) < 2:
        return None
    networks = {trial.arm: load_network(trial.config.train.run)[0] for trial in trained}
    every = [of_task for network in networks.values() for of_task in network.classes.items()]
    most = dict(sorted(every, key=lambda of_task: len(of_task[1])))
    alike = [trial for trial in trained if networks[trial.arm].classes.items() <= most.items()]
    return _draw(alike[0], {trial.arm: networks[trial.arm] for trial in alike}) if len(alike) > 1 else None


class _Compared(NamedTuple):
    """An image of the split, with a prediction per column."""

    disagreement: float
    row: int
    predictions: dict[str, Prediction]


def _draw(trial: Trial, networks: Mapping[str, MultiTaskNet]) -> bytes | None:
    """Draw the images of a trial's validation split on which networks, given by arm, disagree most."""
    data = trial.config.data
    sources = read_sources(data)
    palette = Palette(sources.info.det_classes, sources.info.seg_classes)
    index = sources.index("val")
    compared = _compare(EvaluationPlan(index, BATCH_SIZE, data.eval_size), networks)
    # Keeps no more than these: the logits of all images might not fit into memory.
    shown = nlargest(IMAGES, compared, key=lambda image: image.disagreement)
    if not shown:
        return None
    rows = []
    for image in shown:
        _, sample = read_sample(index, image.row)
        pixels = sample["image"].pixels()
        drawn = [draw_prediction(pixels, prediction, palette) for prediction in image.predictions.values()]
        rows.append([draw_truth(sample, palette), *drawn])
    return grid(rows, ["ground truth", *shown[0].predictions], palette)


def _compare(plan: EvaluationPlan, networks: Mapping[str, MultiTaskNet]) -> Iterator[_Compared]:
    """Predict the first SEARCHED_IMAGES of a split."""
    for step in range(min(plan.steps, SEARCHED_IMAGES // plan.batch_size)):
        batch = make_eval_batch(plan.index, plan.part(step, 0, 1))
        images = torch.tensor(batch.images)
        columns = _columns({arm: predict(network, images, EvaluateConfig()) for arm, network in networks.items()})
        for place, row in enumerate(batch.part.rows.tolist()):
            predictions = {column: of_batch[place] for column, of_batch in columns.items()}
            yield _Compared(disagreement(list(predictions.values())), row, predictions)


def _columns(by_arm: Mapping[str, list[Prediction]]) -> dict[str, list[Prediction]]:
    """Each arm's predictions; those of the two single-task networks in one column."""
    if not all(arm in by_arm for arm in SINGLE):
        return dict(by_arm)
    det, seg = (by_arm[arm] for arm in SINGLE)
    single: list[Prediction] = [{**a, **b} for a, b in zip(det, seg, strict=True)]
    return {"single-task": single} | {arm: found for arm, found in by_arm.items() if arm not in SINGLE}


def disagreement(predictions: Sequence[Prediction]) -> float:
    """Disagreement of predictions of one image, from 0 to 2: the sum over both tasks, the mean over pairs.

    In a task, it is the share of pixels to which the two predictions give different classes. The class of a pixel in
    detection is that of the highest-scoring box that covers it.
    """
    maps = [torch.stack([_box_map(prediction), _pixel_map(prediction)]) for prediction in predictions]
    return float(np.mean([float((a != b).float().mean(dim=(1, 2)).sum()) for a, b in combinations(maps, 2)] or [0.0]))


def _box_map(prediction: Prediction) -> Tensor:
    """(MAP_SIZE, MAP_SIZE) int64: 1 + class, 0 where no box is."""
    drawn = torch.zeros(MAP_SIZE, MAP_SIZE, dtype=torch.int64)
    detections = prediction.get("det")
    if detections is not None:
        for place in detections.scores.argsort():
            if detections.scores[place] >= SHOWN_SCORE:
                x1, y1, x2, y2 = (detections.boxes[place] * MAP_SIZE).round().int().tolist()
                drawn[y1:y2, x1:x2] = 1 + int(detections.labels[place])
    return drawn


def _pixel_map(prediction: Prediction) -> Tensor:
    """(MAP_SIZE, MAP_SIZE) int64: class."""
    if "seg" not in prediction:
        return torch.zeros(MAP_SIZE, MAP_SIZE, dtype=torch.int64)
    return F.interpolate(prediction["seg"][None].float(), (MAP_SIZE, MAP_SIZE), mode="bilinear")[0].argmax(0)
