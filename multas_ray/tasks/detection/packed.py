"""Packing of detection answers into a few kilobytes an image.

Detection is sparse: the packed answer holds the logits of probabilities above `SEEN`, and the box codes of their
anchors. The many small probabilities below add up; their mean over the image is stored for each class.

Losses that weight anchors by the teacher's confidence change by next to nothing. Losses that need every anchor's box
codes, or features, need the whole answer.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multas_ray.tasks.detection.distillation import SEEN
from multas_ray.tasks.packed import TINY, compress, decompress, join, read_head, take_array


def pack(cls: Tensor, box: Tensor) -> list[bytes]:
    """Pack a detection teacher's answer.

    Args:
        cls: (n, A, C) logits.
        box: (n, A, 4) codes.

    Returns:
        One byte string an image.
    """
    p = cls.float().sigmoid()
    seen = p > SEEN
    dropped = ~seen
    # A class's mean over the dropped probabilities; for the most frequent one the mean of the anchors' confidence
    # instead, so that the confidence of all anchors adds up to what it was.
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
        packed.append(compress((*cls.shape[1:], end - start), parts))
        start, box_start = end, box_end
    return packed


def unpack(packed: Sequence[bytes], device: torch.device) -> tuple[Tensor, Tensor]:
    """Unpack the answer for n images, n >= 1.

    Returns:
        Logits (n, A, C) and box codes (n, A, 4), float32; codes of anchors without a probability above `SEEN` are 0.
    """
    answers = [_read(data) for data in packed]
    anchors, classes = answers[0].shape
    rests, values, codes = [[getattr(answer, name) for answer in answers] for name in ("rest", "values", "codes")]
    places = [answer.places + row * anchors * classes for row, answer in enumerate(answers)]
    boxed = [answer.anchors + row * anchors for row, answer in enumerate(answers)]
    fill = torch.logit(join(rests, device).clamp(TINY, 1 - TINY)).view(len(packed), 1, classes)
    cls = fill.expand(-1, anchors, -1).contiguous()
    cls.view(-1)[join(places, device)] = join(values, device).float()
    box = torch.zeros(len(packed), anchors, 4, device=device)
    box.view(-1, 4)[join(boxed, device)] = join(codes, device).float()
    return cls, box


def check(data: bytes, shapes: Collection[tuple[int, ...]]) -> None:
    """Check a packed answer that was read from a file.

    Args:
        data: the packed answer.
        shapes: shapes (A, C) that it may have.

    Raises:
        ValueError: the bytes are no packed answer, or one of another shape.
    """
    shape, _ = read_head(data)
    if shape[:2] not in shapes:
        raise ValueError(f"of the shape {shape}, not one of {sorted(shapes)}")
    _read(data)


class _Sparse(NamedTuple):
    """Sparse answer of a detection teacher for one image."""

    shape: tuple[int, int]
    """Anchors and classes."""
    rest: np.ndarray
    """(C,) float32: mean of the dropped probabilities."""
    places: np.ndarray
    """(k,) int64, ascending: anchor * C + class of each logit."""
    values: np.ndarray
    """(k,) float16: logits."""
    anchors: np.ndarray
    """(s,) int64, ascending: anchors with a logit."""
    codes: np.ndarray
    """(s, 4) float16: box codes of these anchors."""


def _read(data: bytes) -> _Sparse:
    """Read a packed answer; a ValueError says why it is none."""
    (anchors, classes, count), size = read_head(data)
    smallest = 4 * classes + 6 * count
    if count > anchors * classes or not smallest <= size <= smallest + 8 * min(count, anchors):
        raise ValueError("of another size than it says")
    buffer = decompress(data, size)
    rest, buffer = take_array(buffer, np.float32, classes)
    gaps, buffer = take_array(buffer, np.uint32, count)
    values, buffer = take_array(buffer, np.float16, count)
    places = gaps.cumsum(dtype=np.int64)
    seen = np.unique(places // max(1, classes))
    codes, buffer = take_array(buffer, np.float16, 4 * len(seen))
    if len(buffer) or not (gaps[1:] > 0).all() or (places >= anchors * classes).any():
        raise ValueError("its parts do not fit each other")
    if not all(np.isfinite(part).all() for part in (rest, values, codes)):
        raise ValueError("not finite")
    return _Sparse((anchors, classes), rest, places, values, seen, codes.reshape(-1, 4))
