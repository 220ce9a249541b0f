"""Predictions for many images: a Ray Data job of reading tasks, network actors and writing tasks."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from multas_ray.checkpoint.folder import find_checkpoint
from multas_ray.checkpoint.weights import load_network
from multas_ray.config import Task
from multas_ray.data.image import decode_rgb, upright_square
from multas_ray.data.reject import Reject
from multas_ray.deploy.images import Images, find_images
from multas_ray.deploy.outputs import label_png, overlay_png, safe_name, write_coco
from multas_ray.deploy.predictor import NetworkActor, check_score
from multas_ray.deploy.workers import CPUS_PER_TASK, ONE, Workers
from multas_ray.errors import UserError
from multas_ray.evaluate.annotation import Annotation, annotation
from multas_ray.evaluate.evaluator import Prediction, predict
from multas_ray.report.pictures import SHOWN_SCORE, Palette
from multas_ray.storage import StoragePath
from multas_ray.tasks.detection.postprocess import Detections

Row = dict[str, Any]
Progress = Callable[[int, int], None]
"""Function that is called with the number of images that are done, and of all images."""

PREDICTIONS, MASKS, OVERLAYS, REJECTED = "predictions.json", "masks", "overlays", "rejected.jsonl"


def predict_images(
    checkpoint: str,
    source: str,
    out: str,
    *,
    split: str = "val",
    workers: Workers = ONE,
    batch_size: int = 16,
    overlays: bool = True,
    score: float | None = None,
    follow_links: bool = False,
    progress: Progress = lambda done, total: None,
) -> dict[str, int]:
    """Write a network's predictions for images into a folder.

    Args:
        checkpoint: run folder, whose best checkpoint is taken, checkpoint folder or export.
        source: images, see `find_images`.
        out: folder of predictions.json (COCO), masks/<image>.png (class ids), overlays/<image>.png, and rejected.jsonl
            with images that cannot be decoded and files that were not tried.
        split: split of a data set, see `find_images`.
        workers: actors that hold the network.
        batch_size: number of images that the network takes at a time.
        overlays: whether overlays are written.
        score: least score of a detection in predictions.json and the overlays, 0 to 1. None: the file has all
            detections, the overlays those of SHOWN_SCORE and more.
        follow_links: whether links may lead out of the source's folder.
        progress: called after every image.

    Returns:
        Numbers of images, detections and rejected images under `images`, `detections` and `rejected`.

    Raises:
        UserError: checkpoint, images or score cannot be used, or no image can be decoded.
    """
    check_score(score or 0)
    # Found once, so that all actors load the same checkpoint.
    chosen = find_checkpoint(checkpoint)
    network, meta = load_network(chosen)
    palette = Palette(network.det_classes, network.seg_classes)
    folder = StoragePath(out)
    workers.start()
    ray.data.DataContext.get_current().enable_progress_bars = False
    images = find_images(source, split, follow_links)
    (folder / REJECTED).delete()
    if images.left_out:
        lines = [_problem(reject.image_id, reject) + "\n" for reject in images.left_out]
        (folder / REJECTED).write_text("".join(lines))
    writer = PredictionWriter(folder.uri, meta.size, palette, overlays, score)
    counts = {"images": 0, "detections": 0, "rejected": 0}

    def decoded() -> Iterator[Row]:
        for row in _job(images, chosen.uri, workers, batch_size, writer).iter_rows():
            if row["error"]:
                counts["rejected"] += 1
                (folder / REJECTED).append_text(row["error"] + "\n")
            else:
                counts["images"] += 1
                counts["detections"] += len(row["scores"])
                yield row | {"boxes": np.asarray(row["boxes"]).reshape(-1, 4)}
            progress(counts["images"] + counts["rejected"], images.count)

    progress(0, images.count)
    write_coco(folder / PREDICTIONS, network.det_classes, decoded())
    if not counts["images"]:
        raise UserError(f"{source}: none of {counts['rejected']} images can be decoded, see {folder / REJECTED}")
    return counts


def _job(
    images: Images, checkpoint: str, workers: Workers, batch_size: int, writer: "PredictionWriter"
) -> ray.data.Dataset:
    """Lay out the job; its result has a row for each image, see `PredictionWriter`."""
    return (
        # Rows of a block, not a number of blocks: that would wait for all images.
        images.rows.repartition(target_num_rows_per_block=batch_size)
        .map_batches(partial(read, size=writer.size), batch_size=None, batch_format="pyarrow", num_cpus=CPUS_PER_TASK)
        .map_batches(PredictActor, fn_constructor_args=(checkpoint, workers), **workers.options())
        .map(writer, num_cpus=CPUS_PER_TASK)
    )


def read(table: pa.Table, size: int) -> pa.Table:
    """Read and decode images.

    Args:
        table: rows of `Images.rows`.
        size: side of the network's input in pixels.

    Returns:
        Rows with `image_id`, `file_name`, the encoded `image`, its `height` and `width` in pixels, and the network's
        input `pixels`, the bytes of (3, size, size) uint8. A row that cannot be read has a black input, and in `error`
        its line of rejected.jsonl; `error` is empty otherwise.
    """
    torch.set_num_threads(1)
    rows = [_read(row, size) for row in table.to_pylist()]
    types = {"height": pa.int32(), "width": pa.int32(), "pixels": pa.binary(), "error": pa.string()}
    schema = pa.schema({"image_id": pa.string(), "file_name": pa.string(), "image": pa.binary(), **types})
    return pa.Table.from_pylist(rows, schema=schema)


def _read(row: Row, size: int) -> Row:
    name = row["image_id"] or ""
    names = {"image_id": name, "file_name": row.get("file_name", name)}
    try:
        data = _bytes_of(row)
        square, height, width = upright_square(data, size)
    except (Reject, OSError) as error:
        problem = _problem(name, error if isinstance(error, Reject) else Reject("not readable", str(error)))
        empty = {"image": b"", "height": 0, "width": 0, "pixels": bytes(3 * size * size)}
        return names | {"error": problem} | empty
    pixels = square.numpy().tobytes()
    return names | {"error": "", "image": data, "height": height, "width": width, "pixels": pixels}


def _bytes_of(row: Row) -> bytes:
    if "path" in row:
        return StoragePath(row["path"]).read_bytes()
    if row["image_id"] is None:
        raise Reject("no name", "image_id is null")
    if row["problem"] is not None:
        raise Reject("broken Parquet file", row["problem"])
    if row["image"] is None:
        raise Reject("broken image", "image is null")
    image: bytes = row["image"]
    return image


def _problem(image_id: str, reject: Reject) -> str:
    """Return a line of rejected.jsonl."""
    return json.dumps({"image_id": image_id, "reason": reject.reason, "detail": reject.detail})


class PredictActor(NetworkActor):
    """Actor that predicts with its network."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace the network's input in rows of `read` by its predictions, see PREDICTED."""
        predictor, size = self.predictor, self.predictor.size
        pixels = np.frombuffer(b"".join(table["pixels"].to_pylist()), np.uint8).reshape(-1, 3, size, size)
        predictions = predict(predictor.network, torch.tensor(pixels, device=predictor.device), predictor.settings)
        columns: dict[str, list[Any]] = {name: [] for name in PREDICTED.names}
        for prediction in predictions:
            detections, logits = prediction.get("det"), prediction.get("seg")
            columns["boxes"].append(None if detections is None else detections.boxes.flatten().tolist())
            columns["labels"].append(None if detections is None else detections.labels.tolist())
            columns["scores"].append(None if detections is None else detections.scores.tolist())
            columns["logits"].append(None if logits is None else logits.float().cpu().numpy().tobytes())
            columns["stride"].append(0 if logits is None else size // logits.shape[-1])
        for name in PREDICTED.names:
            table = table.append_column(PREDICTED.field(name), pa.array(columns[name], PREDICTED.field(name).type))
        return table.drop_columns(["pixels"])


PREDICTED = pa.schema(
    {
        "boxes": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int64()),
        "scores": pa.list_(pa.float32()),
        "logits": pa.large_binary(),
        "stride": pa.int32(),
    }
)
"""Columns of a prediction: boxes (N * 4) x1 y1 x2 y2 as fractions of the sides, labels (N) and scores (N), null without
the task det; logits, the bytes of (C, h, w) float32, null without the task seg, and their stride in pixels."""


@dataclass(frozen=True)
class PredictionWriter:
    """Writing task of the job."""

    out: str
    """Folder of the results."""
    size: int
    """Side of the network's input in pixels."""
    palette: Palette
    overlays: bool
    """Whether overlays are written."""
    score: float | None
    """Least score of a detection, see `predict_images`."""

    def __call__(self, row: Row) -> Row:
        """Write the mask and the overlay of an image, and return its part of predictions.json.

        Args:
            row: row of `PredictActor`.

        Returns:
            file_name, height and width in pixels, error; boxes (N * 4) x1 y1 x2 y2 in pixels, labels (N), scores (N).
        """
        result: Row = {name: row[name] for name in ("file_name", "height", "width", "error")}
        predicted = Annotation(None, None, None, None)
        if not row["error"]:
            predicted = annotation(_prediction(row, self.size), row["height"], row["width"], self.score or 0)
            name = safe_name(row["image_id"])
            if predicted.mask is not None:
                (StoragePath(self.out) / MASKS / f"{name}.png").write_bytes(label_png(predicted.mask))
            if self.overlays:
                shown = SHOWN_SCORE if self.score is None else self.score
                picture = overlay_png(decode_rgb(row["image"], upright=True), predicted, self.palette, shown)
                (StoragePath(self.out) / OVERLAYS / f"{name}.png").write_bytes(picture)
        for name in ("boxes", "labels", "scores"):
            values = getattr(predicted, name)
            result[name] = [] if values is None else values.ravel().tolist()
        return result


def _prediction(row: Row, size: int) -> Prediction:
    """Restore the prediction in a row of `PredictActor`."""
    prediction: dict[Task, Any] = {}
    if row["scores"] is not None:
        boxes = torch.tensor(row["boxes"], dtype=torch.float32).view(-1, 4)
        scores, labels = torch.tensor(row["scores"], dtype=torch.float32), torch.tensor(row["labels"])
        prediction["det"] = Detections(boxes, scores, labels.long())
    if row["logits"] is not None:
        side = size // row["stride"]
        logits = torch.frombuffer(bytearray(row["logits"]), dtype=torch.float32)
        prediction["seg"] = logits.view(-1, side, side)
    return prediction
