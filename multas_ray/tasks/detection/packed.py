"""Soft targets made small: what a student needs of a teacher's answer, in a few kilobytes an image.

Detection is sparse: of the classes of all anchors the probabilities above `SEEN`, with the box codes of those anchors.
What remains is a whisper of all classes on every anchor; it adds up, and is kept as a mean over the image.
Segmentation is smooth: the square roots of the class probabilities, by blocks of 8x8 pixels, in the cosine basis of
JPEG, rounded to multiples of `STEP`. Both are then compressed without further loss.

Losses that weigh anchors by the teacher's confidence, or compare class distributions, lose next to nothing by it. Those
that need every anchor's box codes, features, or the far tail of a distribution need the whole answer.
"""

import math
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from multas_ray.config import Task
from multas_ray.errors import first_line
from multas_ray.tasks.detection.distillation import SEEN

BLOCK = 8
"""Side of the blocks of the cosine transform, in pixels of the answer."""
STEP = 0.02
"""Of the transform's coefficients, in square roots of probabilities."""
TINY = 1e-7
"""Probability that stands for none."""
CODEC, LEVEL = "zstd", 9
HEAD = 16
"""Bytes before what is compressed: the shape, and its size."""
NAME = f"zstd {LEVEL}, seen {SEEN}, block {BLOCK}, step {STEP}"
"""Says how targets were packed."""

Packed = list[bytes]
"""One for each image."""


def pack_detection(cls: Tensor, box: Tensor) -> Packed:
    """Pack a detection teacher's answer.

    Args:
        cls: (n, A, C) logits.
        box: (n, A, 4) codes.
    """
    p = cls.float().sigmoid()
    seen = p > SEEN
    dropped = ~seen
    # A class's mean over what is dropped; for the most frequent one the mean of the anchors' confidence instead, so
    # that the confidence of all anchors adds up to what it was.
    rest = (p * dropped).sum(dim=1) / dropped.sum(dim=1).clamp(min=1)
    quiet = dropped.all(dim=2)
    confidence = (p.amax(dim=2) * quiet).sum(dim=1) / quiet.sum(dim=1).clamp(min=1)
    rest.scatter_(1, rest.argmax(dim=1, keepdim=True), confidence[:, None])
    images, entries = seen.flatten(1).nonzero(as_tuple=True)
    values = cls.flatten(1)[images, entries].half().cpu().numpy()
    boxed, anchors = seen.any(dim=2).nonzero(as_tuple=True)
    codes = box[boxed, anchors].half().cpu().numpy()
    ends = seen.sum(dim=(1, 2)).cumsum(0).tolist()
    box_ends = seen.any(dim=2).sum(dim=1).cumsum(0).tolist()
    places = entries.cpu().numpy().astype(np.uint32)
    rests = rest.cpu().numpy()
    packed, start, box_start = [], 0, 0
    for row, (end, box_end) in enumerate(zip(ends, box_ends, strict=True)):
        gaps = np.diff(places[start:end], prepend=np.uint32(0))
        parts = (rests[row], gaps, values[start:end], codes[box_start:box_end])
        packed.append(_compress((*cls.shape[1:], end - start), parts))
        start, box_start = end, box_end
    return packed


def unpack_detection(packed: Sequence[bytes], device: torch.device) -> tuple[Tensor, Tensor]:
    """The answer as logits (n, A, C) and box codes (n, A, 4), float32; zeros for the codes of anchors not seen."""
    seen = [_read_detection(data) for data in packed]
    anchors, classes = seen[0].shape
    rests, values, codes = [[getattr(row, name) for row in seen] for name in ("rest", "values", "codes")]
    places = [own.places + row * anchors * classes for row, own in enumerate(seen)]
    boxed = [own.anchors + row * anchors for row, own in enumerate(seen)]
    fill = torch.logit(_join(rests, device).clamp(TINY, 1 - TINY)).view(len(packed), 1, classes)
    cls = fill.expand(-1, anchors, -1).contiguous()
    cls.view(-1)[_join(places, device)] = _join(values, device).float()
    box = torch.zeros(len(packed), anchors, 4, device=device)
    box.view(-1, 4)[_join(boxed, device)] = _join(codes, device).float()
    return cls, box


def pack_segmentation(logits: Tensor) -> Packed:
    """Pack a segmentation teacher's answer, logits (n, C, h, w) with h and w multiples of `BLOCK`."""
    roots = logits.float().softmax(dim=1).sqrt()
    basis = cosine_basis(logits.device)
    blocks = roots.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    # One frequency after another, each with all its blocks: most frequencies of most classes are zeros.
    with torch.autocast(logits.device.type, enabled=False):
        coefficients = torch.einsum("fi,ncyixj,gj->ncfgyx", basis, blocks, basis)
    bins = (coefficients / STEP).round().int()
    # 0, -1, 1, -2, 2, … as 0, 1, 2, 3, 4, …: the upper bytes of small numbers are zeros, also of negative ones.
    counted = torch.where(bins < 0, -2 * bins - 1, 2 * bins).cpu().numpy().astype(np.uint16)
    return [_compress(logits.shape[1:], (row,)) for row in counted]


def unpack_segmentation(packed: Sequence[bytes], device: torch.device) -> Tensor:
    """The answer as logarithms of probabilities (n, C, h, w), float32."""
    shapes, buffers = zip(*map(_open_segmentation, packed), strict=True)
    rows = [_take(buffer, np.uint16, len(buffer) // 2)[0] for buffer in buffers]
    classes, height, width = shapes[0]
    shape = (len(packed), classes, BLOCK, BLOCK, height // BLOCK, width // BLOCK)
    basis = cosine_basis(device)
    counted = torch.as_tensor(np.stack(rows).astype(np.int32), device=device).view(shape)
    coefficients = STEP * torch.where(counted % 2 == 1, -(counted + 1) // 2, counted // 2).float()
    # An autocast around it would round the probabilities to bfloat16's eight bits.
    with torch.autocast(device.type, enabled=False):
        blocks = torch.einsum("fi,ncfgyx,gj->ncyixj", basis, coefficients, basis)
    p = blocks.flatten(4, 5).flatten(2, 3).clamp(min=math.sqrt(TINY)).square()
    return (p / p.sum(dim=1, keepdim=True)).log()


@lru_cache(maxsize=4)
def cosine_basis(device: torch.device) -> Tensor:
    """(BLOCK, BLOCK): the orthonormal discrete cosine transform (type II), one frequency a row."""
    place = (torch.arange(BLOCK) + 0.5) * math.pi / BLOCK
    basis = torch.cos(torch.arange(BLOCK)[:, None] * place) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis.to(device)


def _compress(shape: Sequence[int], parts: Sequence[np.ndarray]) -> bytes:
    """Shape and arrays as bytes: all first bytes of an array, then all second ones, since only the former vary much."""
    body = b"".join(part.reshape(-1, 1).view(np.uint8).T.tobytes() for part in parts)
    head = np.array([*shape, len(body)], np.uint32).tobytes()
    return head + pa.Codec(CODEC, compression_level=LEVEL).compress(body, asbytes=True)


def check_packed(task: Task, data: bytes, shapes: Collection[tuple[int, ...]]) -> None:
    """Look at a packed answer that has lain in a file.

    Args:
        shapes: of which it may be: (A, C) of detection, (C, h, w) of segmentation.

    Raises:
        ValueError: it is none, or of another shape.
    """
    shape, _ = _head(data)
    if shape[: 2 if task == "det" else 3] not in shapes:
        raise ValueError(f"of the shape {shape}, not one of {sorted(shapes)}")
    # Of segmentation any numbers are an answer.
    (_read_detection if task == "det" else _open_segmentation)(data)


class _Seen(NamedTuple):
    """What a detection teacher sees in an image."""

    shape: tuple[int, int]
    """Anchors and classes."""
    rest: np.ndarray
    """(C,) float32: mean probability of what it does not see."""
    places: np.ndarray
    """(k,) int64, ascending: anchor * C + class."""
    values: np.ndarray
    """(k,) float16: their logits."""
    anchors: np.ndarray
    """(s,) int64: the anchors among them."""
    codes: np.ndarray
    """(s, 4) float16: their box codes."""


def _read_detection(data: bytes) -> _Seen:
    (anchors, classes, count), size = _head(data)
    least = 4 * classes + 6 * count
    if count > anchors * classes or not least <= size <= least + 8 * min(count, anchors):
        raise ValueError("of another size than it says")
    buffer = _decompress(data, size)
    rest, buffer = _take(buffer, np.float32, classes)
    gaps, buffer = _take(buffer, np.uint32, count)
    values, buffer = _take(buffer, np.float16, count)
    places = gaps.cumsum(dtype=np.int64)
    seen = np.unique(places // max(1, classes))
    codes, buffer = _take(buffer, np.float16, 4 * len(seen))
    if len(buffer) or not (gaps[1:] > 0).all() or (places >= anchors * classes).any():
        raise ValueError("its parts do not fit each other")
    if not all(np.isfinite(part).all() for part in (rest, values, codes)):
        raise ValueError("not finite")
    return _Seen((anchors, classes), rest, places, values, seen, codes.reshape(-1, 4))


def _open_segmentation(data: bytes) -> tuple[tuple[int, ...], memoryview]:
    """Shape (C, h, w), and C * h * w uint16: the transform's bins, counted from zero to both sides."""
    shape, size = _head(data)
    if size != 2 * math.prod(shape):
        raise ValueError("of another size than it says")
    return shape, _decompress(data, size)


def _head(data: bytes) -> tuple[tuple[int, ...], int]:
    """Shape and size in bytes of a packed answer, as it begins."""
    if len(data) < HEAD:
        raise ValueError("cut short")
    *shape, size = np.frombuffer(data, np.uint32, 4).tolist()
    return tuple(shape), size


def _decompress(data: bytes, size: int) -> memoryview:
    try:
        return memoryview(pa.Codec(CODEC).decompress(memoryview(data)[HEAD:], size))
    except OSError as error:
        raise ValueError(first_line(error)) from None


def _take(buffer: memoryview, dtype: type, count: int) -> tuple[np.ndarray, memoryview]:
    """The array that the buffer begins with, and what comes after it."""
    width = np.dtype(dtype).itemsize
    size = count * width
    if size > len(buffer):
        raise ValueError("cut short")
    planes = np.frombuffer(buffer[:size], np.uint8).reshape(width, count)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1), buffer[size:]


def _join(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.as_tensor(np.concatenate(arrays), device=device)
