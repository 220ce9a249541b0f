"""One batch: rows of a split read, decoded, augmented and collated."""

import json

import numpy as np
import torch
from torchvision import tv_tensors

from multas_ray.config import AugmentConfig
from multas_ray.data.index import Index
from multas_ray.data.plan import Part
from multas_ray.data.read import read_sample
from multas_ray.data.reject import Reject
from multas_ray.data.transforms import Augment, Sample, resize


def make_batch(index: Index, part: Part, augment: AugmentConfig | None) -> dict[str, np.ndarray]:
    """Read, decode, transform and collate one part. A row that cannot be used is left out and named; where that leaves
    none for training, a black image without an id or annotation stands in, since a network needs an image.

    Returns:
        step, rank: int64 scalars; rows, epochs, views: (b,) int64; ids: (b,) bytes
        images: (b, 3, size, size) uint8
        has_det, has_seg: (b,) bool
        boxes: (b, M, 4) float32, x1 y1 x2 y2 in [0, 1]; labels: (b, M) int64, -1 = padding; difficult: (b, M) bool
        masks: (s, size, size) uint8 of the s rows with has_seg, in order
        rejected: JSON, a list of {image_id, reason, detail}
        For evaluation (augment is None) boxes are in pixels of the original image and, instead of masks:
        sizes: (b, 2) int64 height and width; pixels: the s masks in original size, raveled one after another

    Raises:
        UserError: a file of the data set is no longer there, or no longer what it was.
    """
    rows, samples, kept, rejected = [], [], [], []
    for place, number in enumerate(part.rows):
        try:
            row, sample = read_sample(index, int(number))
        except Reject as reject:
            rejected.append({"image_id": reject.image_id, "reason": reject.reason, "detail": reject.detail})
        else:
            rows.append(row)
            samples.append(sample)
            kept.append(place)
    if augment is not None and rejected and not kept:
        rows, kept = [{"image_id": "", "has_det": False, "has_seg": False}], [0]
        samples = [{"image": tv_tensors.Image(torch.zeros(3, part.size, part.size, dtype=torch.uint8))}]
    if augment is None:
        inputs = [resize({"image": sample["image"]}, part.size) for sample in samples]
    else:
        transform = Augment(augment)
        samples = inputs = [
            transform(sample, part.size, int(seed)) for sample, seed in zip(samples, part.seeds[kept], strict=True)
        ]
    batch = {
        "step": np.asarray(part.step),
        "rank": np.asarray(part.rank),
        "rows": part.rows[kept],
        "epochs": part.epochs[kept],
        "views": part.views[kept],
        "ids": np.asarray([row["image_id"].encode() for row in rows], np.bytes_),
        "images": _stack([sample["image"] for sample in inputs], (3, part.size, part.size)),
        "has_det": np.asarray([row["has_det"] for row in rows], bool),
        "has_seg": np.asarray([row["has_seg"] for row in rows], bool),
        "rejected": np.frombuffer(json.dumps(rejected).encode(), np.uint8),
    }
    batch |= _pad_boxes(samples, scale=part.size if augment else 1)
    masks = [sample["mask"] for sample in samples if "mask" in sample]
    if augment is None:
        batch["sizes"] = np.asarray([[row["height"], row["width"]] for row in rows], np.int64).reshape(-1, 2)
        batch["pixels"] = np.concatenate([mask.numpy().ravel() for mask in masks] or [np.zeros(0, np.uint8)])
    else:
        batch["masks"] = _stack(masks, (part.size, part.size))
    return batch


def rejected_rows(batch: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """The rows that `make_batch` left out."""
    return json.loads(batch["rejected"].tobytes())


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
