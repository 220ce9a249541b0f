"""A checkpoint's metrics on any split: network actors score its batches, the driver merges what they counted."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from multas_ray.checkpoint.folder import find_checkpoint
from multas_ray.config import Protocol, Resources, Task
from multas_ray.data.batch import EvalBatch, Failure, RejectedRow
from multas_ray.data.index import read_index
from multas_ray.data.packing import pack, unpack
from multas_ray.data.plan import EvaluationPlan
from multas_ray.data.schema import DatasetInfo, read_info
from multas_ray.data.stream import PlannedStream, read_batches, stream, stream_options
from multas_ray.deploy.predictor import Predictor
from multas_ray.deploy.workers import ONE, Workers
from multas_ray.errors import UserError
from multas_ray.evaluate.evaluator import add, computed, new_metrics, predict
from multas_ray.evaluate.scores import TASK_METRIC, score
from multas_ray.model.network import MultiTaskNet
from multas_ray.ray_setup import data_tasks
from multas_ray.report.html import Page
from multas_ray.report.overlays import COLUMNS, draw_samples
from multas_ray.report.pictures import captioned, grid
from multas_ray.report.plots import class_bars
from multas_ray.report.tables import class_table, metric_table
from multas_ray.storage import StoragePath

RESULT, REPORT, WORST = "result.json", "report.html", "worst.png"


def score_checkpoint(
    checkpoint: str,
    data: str,
    split: str,
    out: str,
    *,
    protocol: Protocol | None = None,
    workers: Workers = ONE,
    worst: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Score a network on a split, and write result.json, report.html and worst.png into a folder.

    Args:
        checkpoint: a run folder (its best checkpoint), a checkpoint folder or an export.
        data, split: a data set with the network's classes.
        protocol: of average precision; default: the training run's.
        worst: images in the gallery of those that the network does worst on: with the lowest mean, over the tasks that
            an image is annotated for, of its own det/AP and seg/mIoU.
        progress: told of the images that are scored, and of all.

    Returns:
        What result.json holds: checkpoint, data, split, protocol, images, rejected, metrics.

    Raises:
        UserError: checkpoint or data cannot be used, or do not fit.
    """
    chosen = find_checkpoint(checkpoint)
    own = Predictor(chosen, "cpu")
    info = read_info(data)
    check_classes(own.network, info, checkpoint, data)
    place = StoragePath(data).uri
    plan = EvaluationPlan(read_index(place, split), own.settings.batch_size, own.size)
    protocol = protocol or own.settings.protocol
    workers.start()
    parallel = data_tasks()
    batches = stream(PlannedStream(plan), 1, parallel=parallel, resources=Resources())
    scored = batches.map_batches(Scorer, fn_constructor_args=(chosen.uri, workers), **workers.options())
    scored.context.execution_options = stream_options(plan, 1, parallel)

    by_task = new_metrics(own.network, own.settings.model_copy(update={"protocol": protocol}))
    rows: list[int] = []
    scores: list[float] = []
    rejected: list[dict[str, str]] = []
    progress(0, len(plan.index))
    batch: ScoredBatch
    for batch in read_batches(scored):
        for task, metric in by_task.items():
            metric.merge(batch.states[task])
        rows += batch.rows
        scores += batch.scores
        rejected += [row._asdict() for row in batch.rejected]
        progress(len(rows) + len(rejected), len(plan.index))
    metrics = computed(by_task)
    if not metrics:
        raise UserError(f"{data}: split '{split}' has nothing annotated for {' or '.join(own.network.tasks)}")

    result = {
        **{"checkpoint": str(chosen), "data": str(StoragePath(data)), "split": split, "protocol": protocol},
        **{"images": len(rows), "rejected": rejected, "metrics": metrics | {"score": score(metrics)}},
    }
    folder = StoragePath(out)
    order = [int(place) for place in np.argsort(scores) if not np.isnan(scores[place])][:worst]
    gallery = draw_worst(own, plan, [(rows[place], scores[place]) for place in order])
    (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    (folder / WORST).write_bytes(gallery)
    (folder / REPORT).write_text(_report(result, gallery))
    return result


def check_classes(network: MultiTaskNet, info: DatasetInfo, checkpoint: str, data: str) -> None:
    """Refuse a data set whose classes are not the network's.

    Raises:
        UserError: names both.
    """
    for task, names in network.classes.items():
        if list(names) != info.classes[task]:
            raise UserError(
                f"{checkpoint}: its {task} classes are {', '.join(names)}; those of {data} are "
                f"{', '.join(info.classes[task])}"
            )


@dataclass(frozen=True)
class ScoredBatch:
    """An evaluation batch after it was scored."""

    states: Mapping[Task, dict[str, np.ndarray]]
    """Of the metrics."""
    rows: list[int]
    """Rows of the split."""
    scores: list[float]
    """Each row's own score; NaN where there is nothing to score."""
    rejected: tuple[RejectedRow, ...]


class Scorer:
    """An actor that holds the network and counts what it gets right."""

    def __init__(self, checkpoint: str, workers: Workers) -> None:
        torch.set_num_threads(workers.threads)
        self.predictor = Predictor(checkpoint, workers.device)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A `ScoredBatch` for each evaluation batch of a chunk; a `Failure` stays one."""
        return pack([batch if isinstance(batch, Failure) else self._score(batch) for batch in unpack(table)])

    def _score(self, batch: EvalBatch) -> ScoredBatch:
        own = self.predictor
        metrics = new_metrics(own.network, own.settings)
        images = torch.tensor(batch.images, device=own.device)
        predictions = predict(own.network, images, own.settings) if len(images) else []
        scores = []
        for row, prediction in enumerate(predictions):
            # An image's own score is COCO's, whatever the protocol.
            alone = new_metrics(own.network, own.settings.model_copy(update={"protocol": "coco"}))
            add(batch, row, prediction, alone)
            scores.append(image_score(computed(alone)))
            for task, metric in metrics.items():
                metric.merge(alone[task].state())
        states = {task: metric.state() for task, metric in metrics.items()}
        return ScoredBatch(states, batch.part.rows.tolist(), scores, batch.rejected)


def image_score(metrics: dict[str, float]) -> float:
    """The mean of one image's own det/AP and seg/mIoU, of the tasks that it can be scored for; NaN without any."""
    values = [metrics[key] for key in TASK_METRIC.values() if key in metrics]
    return sum(values) / len(values) if values else float("nan")


def draw_worst(own: Predictor, plan: EvaluationPlan, chosen: Sequence[tuple[int, float]]) -> bytes:
    """A PNG with a row an image: ground truth and prediction.

    Args:
        chosen: rows of the split, with their scores.
    """
    samples = draw_samples(own.network, plan.index.take([row for row, _ in chosen]), plan.size, own.settings)
    pictures = [
        [captioned(truth, name), captioned(found, f"score {score:.1f}")]
        for (truth, found), name, (_, score) in zip(samples.rows, samples.image_ids, chosen, strict=True)
    ]
    return grid(pictures, COLUMNS, samples.palette)


def _report(result: dict[str, Any], gallery: bytes) -> str:
    columns = {result["split"]: result["metrics"]}
    intro = f"{result['checkpoint']}\n{result['images']} images of {result['data']}, protocol {result['protocol']}"
    if result["rejected"]:
        intro += f"\n{len(result['rejected'])} images could not be decoded and were left out (result.json)"
    return Page(
        title=f"Evaluation on {result['split']}",
        intro=intro,
        tables={"Metrics [%]": metric_table(columns), "Metrics by class [%]": class_table(columns)},
        figures={"By class": class_bars(columns)},
        pictures={"Worst images": gallery},
    ).html()
