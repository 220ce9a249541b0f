"""One batch: rows of a split read, decoded, augmented and collated."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image

from multas_ray.config import AugmentConfig
from multas_ray.data.index import Index
from multas_ray.data.plan import Part
from multas_ray.data.schema import filesystem
from multas_ray.data.transforms import Augment, Sample, resize


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
        "ids": np.asarray([row["image_id"].encode() for row in rows], np.bytes_),
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


def original_masks(batch: dict[str, np.ndarray]) -> list[np.ndarray | None]:
    """Of an evaluation batch: each row's (height, width) uint8 mask, None where has_seg is false."""
    masks: list[np.ndarray | None] = []
    start = 0
    for (height, width), has_seg in zip(batch["sizes"], batch["has_seg"], strict=True):
        end = start + height * width * has_seg
        masks.append(batch["pixels"][start:end].reshape(height, width) if has_seg else None)
        start = end
    return masks
