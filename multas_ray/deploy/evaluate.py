"""Evaluation of a checkpoint on any split: actors score batches, and the driver merges the states of their metrics."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa
import torch

from multas_ray.checkpoint.folder import find_checkpoint
from multas_ray.config import Protocol, Resources, Task
from multas_ray.data.batch import EvalBatch, Failure, RejectedRow
from multas_ray.data.classes import ClassMap
from multas_ray.data.index import Index, join_indexes, read_index
from multas_ray.data.packing import pack, unpack
from multas_ray.data.plan import EvaluationPlan
from multas_ray.data.schema import DatasetInfo, read_info
from multas_ray.data.stream import PlannedStream, read_batches, stream, stream_options
from multas_ray.deploy.predictor import NetworkActor, Predictor
from multas_ray.deploy.workers import ONE, Workers
from multas_ray.errors import UserError, quoted
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


class Evaluation(TypedDict):
    """Content of result.json."""

    checkpoint: str
    data: str
    split: str
    protocol: Protocol
    images: int
    """Number of images that were scored."""
    rejected: list[dict[str, str]]
    """Rows that cannot be used, see `RejectedRow`."""
    metrics: dict[str, float]


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
) -> Evaluation:
    """Score a network on a split, and write result.json, report.html and worst.png into a folder.

    Args:
        checkpoint: run folder, whose best checkpoint is taken, checkpoint folder or export.
        data: data set with some of the network's classes; the others were not looked for in its images.
        split: split of the data set.
        out: folder of the results.
        protocol: definition of average precision; by default that of the training run.
        workers: actors that hold the network.
        worst: number of images in the gallery of the worst predictions, those with the lowest `image_score`.
        progress: function that is called with the number of images that are done, and of all images.

    Returns:
        Content of result.json.

    Raises:
        UserError: checkpoint or data cannot be used, or do not fit.
    """
    chosen = find_checkpoint(checkpoint)
    predictor = Predictor(chosen, "cpu")
    info = read_info(data)
    index = in_classes_of(predictor.network, info, read_index(StoragePath(data).uri, split), checkpoint)
    plan = EvaluationPlan(index, predictor.settings.batch_size, predictor.size)
    protocol = protocol or predictor.settings.protocol
    workers.start()
    parallel = data_tasks()
    batches = stream(PlannedStream(plan), 1, parallel=parallel, resources=Resources())
    scored = batches.map_batches(Scorer, fn_constructor_args=(chosen.uri, workers), **workers.options())
    scored.context.execution_options = stream_options(plan, 1, parallel)

    by_task = new_metrics(predictor.network, predictor.settings.model_copy(update={"protocol": protocol}))
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
        raise UserError(f"{data}: split '{split}' has nothing annotated for {' or '.join(predictor.network.tasks)}")

    result: Evaluation = {
        "checkpoint": str(chosen),
        "data": str(StoragePath(data)),
        "split": split,
        "protocol": protocol,
        "images": len(rows),
        "rejected": rejected,
        "metrics": metrics | {"score": score(metrics)},
    }
    folder = StoragePath(out)
    order = [int(place) for place in np.argsort(scores) if not np.isnan(scores[place])][:worst]
    gallery = draw_worst(predictor, plan, [(rows[place], scores[place]) for place in order])
    (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    (folder / WORST).write_bytes(gallery)
    (folder / REPORT).write_text(_report(result, gallery))
    return result


def in_classes_of(network: MultiTaskNet, info: DatasetInfo, index: Index, checkpoint: str) -> Index:
    """Return the index of a data set with its classes as the network numbers them, by name.

    Classes of the network that the data set does not list were not looked for in its images.

    Args:
        network: network of the checkpoint.
        info: description of the data set.
        index: rows of the data set.
        checkpoint: name of the checkpoint in errors.

    Raises:
        UserError: the data set has a class of a task that the network does not know; names both lists.
    """
    classes = dict(index.names)
    maps: dict[Task, ClassMap] = {}
    for task, names in network.classes.items():
        unknown = [name for name in info.classes[task] if name not in names]
        if unknown:
            raise UserError(
                f"{checkpoint}: does not know the {task} class {quoted(unknown[0])}; its {task} classes are "
                f"{', '.join(names)}, those of {index.path} are {', '.join(info.classes[task])}"
            )
        classes[task] = tuple(names)
        maps[task] = ClassMap(tuple(names.index(name) for name in info.classes[task]), len(names))
    return index if classes == index.names else join_indexes({"": index}, {"": maps}, classes)


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of an evaluation batch."""

    states: Mapping[Task, dict[str, np.ndarray]]
    """State of each task's metric."""
    rows: list[int]
    """Rows of the split."""
    scores: list[float]
    """`image_score` of each row."""
    rejected: tuple[RejectedRow, ...]


class Scorer(NetworkActor):
    """Actor that scores the predictions of its network."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Turn each evaluation batch of a chunk into a `ScoredBatch`; a `Failure` stays one."""
        return pack([batch if isinstance(batch, Failure) else self._score(batch) for batch in unpack(table)])

    def _score(self, batch: EvalBatch) -> ScoredBatch:
        network, settings = self.predictor.network, self.predictor.settings
        metrics = new_metrics(network, settings)
        images = torch.tensor(batch.images, device=self.predictor.device)
        predictions = predict(network, images, settings) if len(images) else []
        scores = []
        for row, prediction in enumerate(predictions):
            # An image's own score is COCO's, whatever the protocol.
            alone = new_metrics(network, settings.model_copy(update={"protocol": "coco"}))
            add(batch, row, prediction, alone)
            scores.append(image_score(computed(alone)))
            for task, metric in metrics.items():
                metric.merge(alone[task].state())
        states = {task: metric.state() for task, metric in metrics.items()}
        return ScoredBatch(states, batch.part.rows.tolist(), scores, batch.rejected)


def image_score(metrics: dict[str, float]) -> float:
    """Return the score of one image from its own metrics, in percent.

    It is the mean of det/AP and seg/mIoU over the tasks for which the image is annotated; NaN without any.
    """
    values = [metrics[key] for key in TASK_METRIC.values() if key in metrics]
    return sum(values) / len(values) if values else float("nan")


def draw_worst(predictor: Predictor, plan: EvaluationPlan, chosen: Sequence[tuple[int, float]]) -> bytes:
    """Draw a PNG with a row an image: ground truth and prediction.

    Args:
        predictor: network to predict with.
        plan: plan of the split.
        chosen: rows of the split, with their scores.
    """
    index = plan.index.take([row for row, _ in chosen])
    samples = draw_samples(predictor.network, index, plan.size, predictor.settings)
    pictures = [
        [captioned(truth, name), captioned(prediction, f"score {score:.1f}")]
        for (truth, prediction), name, (_, score) in zip(samples.rows, samples.image_ids, chosen, strict=True)
    ]
    return grid(pictures, COLUMNS, samples.palette)


def _report(result: Evaluation, gallery: bytes) -> str:
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
