"""One batch: rows of a split read, decoded, augmented and collated."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from cachetools import LRUCache, cached
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image

from multas_ray.config import AugmentConfig
from multas_ray.data.index import Index
from multas_ray.data.plan import Part
from multas_ray.data.transforms import Augment, Sample, resize
from multas_ray.errors import UserError
from multas_ray.storage import StoragePath

CACHE_BYTES = 256e6
"""Of row groups that a process keeps: the rows of a shuffled window come from the same few."""


PLAIN_COLUMNS = ("image_id", "image", "height", "width", "has_det", "has_seg", "mask")


def make_batch(index: Index, part: Part, augment: AugmentConfig | None) -> dict[str, np.ndarray]:
    """Read, decode, transform and collate one part. A row that cannot be decoded is left out and named; where that
    leaves none for training, a black image without an id or annotation stands in, since a network needs an image.

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
        UserError: a file of the data set is no longer there.
    """
    rows, samples, kept, rejected = [], [], [], []
    for place, number in enumerate(part.rows):
        row = read_row(index, int(number))
        try:
            samples.append(decode(row))
        except (RuntimeError, ValueError) as error:
            detail = str(error).splitlines()[0]
            rejected.append({"image_id": row["image_id"], "reason": "cannot be decoded", "detail": detail})
        else:
            rows.append(row)
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


def decode(row: dict[str, Any]) -> Sample:
    """The image of a row with the annotation that it has.

    Raises:
        RuntimeError, ValueError: the image or the mask is broken, or of another size than the row says.
    """
    image = decode_image(torch.frombuffer(bytearray(row["image"]), dtype=torch.uint8), ImageReadMode.RGB)
    size = (row["height"], row["width"])
    if image.shape[-2:] != size:
        raise ValueError(f"the image has {tuple(image.shape[-2:])} pixels, its row says {size}")
    sample: Sample = {"image": tv_tensors.Image(image)}
    if row["has_det"]:
        boxes = torch.tensor(row["boxes"], dtype=torch.float32)
        sample["boxes"] = tv_tensors.BoundingBoxes(
            boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=image.shape[-2:]
        )
        sample["labels"] = torch.tensor(row["labels"], dtype=torch.int64)
        sample["difficult"] = torch.tensor(row["difficult"], dtype=torch.bool)
    if row["has_seg"]:
        mask = decode_image(torch.frombuffer(bytearray(row["mask"]), dtype=torch.uint8), ImageReadMode.UNCHANGED)
        if mask.shape[-2:] != size:
            raise ValueError(f"the mask has {tuple(mask.shape[-2:])} pixels, the image {size}")
        sample["mask"] = tv_tensors.Mask(mask[0])
    return sample


def read_row(index: Index, row: int) -> dict[str, Any]:
    """One row of a split: plain Python values, and arrays of boxes (n, 4), labels and difficult (n,).

    Raises:
        UserError: its file is no longer there.
    """
    group = _row_group(index.path, index.files[index.file[row]], int(index.group[row]))
    place = int(index.offset[row])
    first, end = group.ends[place : place + 2]
    return {
        **{name: column[place].as_py() for name, column in group.columns.items()},
        "boxes": group.boxes[first:end],
        "labels": group.labels[first:end],
        "difficult": group.difficult[first:end],
    }


class _RowGroup:
    """A row group, so laid out that a row costs little: Arrow's lists become Python's slowly."""

    def __init__(self, table: pa.Table) -> None:
        self.bytes = table.nbytes
        table = table.combine_chunks()
        self.columns = {name: table[name].chunk(0) for name in PLAIN_COLUMNS}
        boxes, labels, difficult = (table[name].chunk(0) for name in ("boxes", "labels", "difficult"))
        # Of rows without boxes too, all three lists of a row are of one length.
        self.ends = boxes.offsets.to_numpy() - boxes.offsets[0].as_py()
        self.boxes = boxes.flatten().flatten().to_numpy().reshape(-1, 4)
        self.labels = labels.flatten().to_numpy()
        self.difficult = difficult.flatten().to_numpy(zero_copy_only=False)


@cached(LRUCache(CACHE_BYTES, getsizeof=lambda group: group.bytes))
def _row_group(path: str, file: str, group: int) -> _RowGroup:
    try:
        with (
            StoragePath(path).filesystem.open_input_file(file) as source,
            pq.ParquetFile(source, pre_buffer=True) as parquet,
        ):
            return _RowGroup(parquet.read_row_group(group))
    except FileNotFoundError:
        raise UserError(f"{file}: was there when the run began, and is gone") from None


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
