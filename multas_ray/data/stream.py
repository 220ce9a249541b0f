"""The Ray Data stream: chunks of a plan become packed batches, read, decoded, augmented and collated in Ray tasks."""

from collections.abc import Iterator
from functools import lru_cache, partial
from time import sleep
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.data._internal.execution.execution_callback import ExecutionCallback
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image

from multas_ray.config import AugmentConfig
from multas_ray.data.batch import pack, unpack
from multas_ray.data.index import Index
from multas_ray.data.plan import EvaluationPlan, Part, Plan
from multas_ray.data.schema import filesystem
from multas_ray.data.transforms import Augment, Sample, resize

CHUNK_IMAGES = 32
"""Images that one Ray Data task makes: enough that its start-up does not count, few enough for a short first wait."""


def stream(
    plan: Plan | EvaluationPlan,
    workers: int,
    *,
    start: int = 0,
    augment: AugmentConfig | None = None,
    parallel: int,
    cpus_per_task: float,
) -> ray.data.Dataset:
    """A Ray data set of packed batches, one a row: chunk i holds the next few batches of worker i mod `workers`.

    Read in order through `streaming_split(workers, equal=True)`, every worker gets just its own batches, from step
    `start` to the plan's last.

    Args:
        augment: None leaves out augmentation and adds the ground truth in original pixels, for evaluation.
        parallel: most tasks at a time.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [Unhurried]
    # Without progress for so long something is stuck: better an error than a silent wait of half an hour.
    context.execution_no_progress_timeout_s = 300
    rows_a_part = max(1, (plan.batch_size + workers - 1) // workers)
    chunk_steps = max(1, CHUNK_IMAGES // rows_a_part)
    chunks = -(-(plan.steps - start) // chunk_steps) * workers
    make = partial(make_chunk, plan=plan, workers=workers, start=start, chunk_steps=chunk_steps, augment=augment)
    return ray.data.range(chunks, override_num_blocks=max(1, chunks)).map_batches(
        make,
        batch_size=None,
        zero_copy_batch=True,
        num_cpus=cpus_per_task,
        compute=ray.data.TaskPoolStrategy(size=parallel),
    )


class Unhurried(ExecutionCallback):
    """Pauses Ray Data's scheduling loop at every turn: while the stream is held back, it would spin without a pause and
    take a third of a core from the training."""

    def on_execution_step(self, executor: object) -> None:
        """Sleep."""
        sleep(0.02)


def stream_memory(size: int, workers: int, parallel: int) -> float:
    """Bytes of object store for a stream of images of this side: two chunks for every task and worker, at least 64 MB.

    A chunk's bytes are those of its pixels and masks, and as much again for what is in flight.
    """
    chunk = CHUNK_IMAGES * 4 * size**2 * 2
    return max(64e6, 2.0 * chunk * (parallel + workers))


def make_chunk(
    chunk: dict[str, np.ndarray],
    *,
    plan: Plan | EvaluationPlan,
    workers: int,
    start: int,
    chunk_steps: int,
    augment: AugmentConfig | None,
) -> Iterator[pa.Table]:
    """The packed batches of chunk `chunk["id"]`, one table each."""
    torch.set_num_threads(1)
    for number in chunk["id"]:
        turn, rank = divmod(int(number), workers)
        first = start + turn * chunk_steps
        for step in range(first, min(first + chunk_steps, plan.steps)):
            part = plan.part(step, rank, workers)
            yield pack(make_batch(plan.index, part, augment))


def make_batch(index: Index, part: Part, augment: AugmentConfig | None) -> dict[str, np.ndarray]:
    """Read, decode, transform and collate one part.

    Returns:
        step, rank: int64 scalars; rows, epochs: (b,) int64; ids: (b,) bytes
        images: (b, 3, size, size) uint8
        has_det, has_seg: (b,) bool
        boxes: (b, M, 4) float32, x1 y1 x2 y2 in [0, 1]; labels: (b, M) int64, -1 = padding; difficult: (b, M) bool
        masks: (s, size, size) uint8 of the s rows with has_seg, in order
        For evaluation (augment is None) boxes are in pixels of the original image and, instead of masks:
        sizes: (b, 2) int64 height and width; pixels: the s masks in original size, raveled one after another
    """
    rows = [read_row(index, int(row)) for row in part.rows]
    samples = [decode(row) for row in rows]
    if augment is None:
        inputs = [resize({"image": sample["image"]}, part.size) for sample in samples]
    else:
        transform = Augment(augment)
        samples = inputs = [
            transform(sample, part.size, int(seed)) for sample, seed in zip(samples, part.seeds, strict=True)
        ]
    batch = {
        "step": np.asarray(part.step),
        "rank": np.asarray(part.rank),
        "rows": part.rows,
        "epochs": part.epochs,
        "ids": np.asarray([row["image_id"] for row in rows], np.bytes_),
        "images": _stack([sample["image"] for sample in inputs], (3, part.size, part.size)),
        "has_det": np.asarray([row["has_det"] for row in rows], bool),
        "has_seg": np.asarray([row["has_seg"] for row in rows], bool),
    }
    batch |= _pad_boxes(samples, scale=part.size if augment else 1)
    masks = [sample["mask"] for sample in samples if "mask" in sample]
    if augment is None:
        batch["sizes"] = np.asarray([[row["height"], row["width"]] for row in rows], np.int64).reshape(-1, 2)
        batch["pixels"] = np.concatenate([mask.numpy().ravel() for mask in masks] or [np.zeros(0, np.uint8)])
    else:
        batch["masks"] = _stack(masks, (part.size, part.size))
    return batch


def decode(row: dict[str, Any]) -> Sample:
    """The image of a row with the annotation that it has."""
    image = decode_image(torch.frombuffer(bytearray(row["image"]), dtype=torch.uint8), ImageReadMode.RGB)
    sample: Sample = {"image": tv_tensors.Image(image)}
    if row["has_det"]:
        boxes = torch.tensor(row["boxes"], dtype=torch.float32).reshape(-1, 4)
        sample["boxes"] = tv_tensors.BoundingBoxes(
            boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=image.shape[-2:]
        )
        sample["labels"] = torch.tensor(row["labels"], dtype=torch.int64)
        sample["difficult"] = torch.tensor(row["difficult"], dtype=torch.bool)
    if row["has_seg"]:
        mask = decode_image(torch.frombuffer(bytearray(row["mask"]), dtype=torch.uint8), ImageReadMode.UNCHANGED)
        sample["mask"] = tv_tensors.Mask(mask[0])
    return sample


def read_row(index: Index, row: int) -> dict[str, Any]:
    """One row of a split as plain Python values."""
    table = _row_group(index.path, index.files[index.file[row]], int(index.group[row]))
    return table.slice(int(index.offset[row]), 1).to_pylist()[0]


@lru_cache(maxsize=32)
def _row_group(path: str, file: str, group: int) -> pa.Table:
    """A row group, kept because the rows of a shuffled window come from the same few."""
    filesys, _ = filesystem(path)
    with filesys.open_input_file(file) as source, pq.ParquetFile(source) as parquet:
        return parquet.read_row_group(group)


def _stack(tensors: list[torch.Tensor], shape: tuple[int, ...]) -> np.ndarray:
    return np.stack([tensor.numpy() for tensor in tensors]) if tensors else np.zeros((0, *shape), np.uint8)


def _pad_boxes(samples: list[Sample], scale: float) -> dict[str, np.ndarray]:
    most = max((len(sample["boxes"]) for sample in samples if "boxes" in sample), default=0)
    boxes = np.zeros((len(samples), most, 4), np.float32)
    labels = np.full((len(samples), most), -1, np.int64)
    difficult = np.zeros((len(samples), most), bool)
    for number, sample in enumerate(samples):
        if "boxes" in sample:
            count = len(sample["boxes"])
            boxes[number, :count] = sample["boxes"].numpy() / scale
            labels[number, :count] = sample["labels"].numpy()
            difficult[number, :count] = sample["difficult"].numpy()
    return {"boxes": boxes, "labels": labels, "difficult": difficult}


def read_batches(shard: ray.data.DataIterator, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches of one worker's shard of a `stream`, unpacked; `prefetch` more are fetched ahead."""
    for table in shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=prefetch):
        yield unpack(table)


def original_masks(batch: dict[str, np.ndarray]) -> list[np.ndarray | None]:
    """Of an evaluation batch: each row's (height, width) uint8 mask, None where has_seg is false."""
    masks: list[np.ndarray | None] = []
    start = 0
    for (height, width), has_seg in zip(batch["sizes"], batch["has_seg"], strict=True):
        end = start + height * width * has_seg
        masks.append(batch["pixels"][start:end].reshape(height, width) if has_seg else None)
        start = end
    return masks
