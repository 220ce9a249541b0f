"""Packing of segmentation answers into a few kilobytes an image.

Segmentation is smooth: the square roots of the class probabilities are transformed by blocks of 8x8 pixels into the
cosine basis of JPEG, rounded to multiples of `STEP`, then compressed without further loss.

Losses that compare class distributions change by next to nothing. Losses that need the far tail of a distribution need
the whole answer.

Measured on the answers of a trained network (7 classes, 80x80 pixels): 7.5 kB an image, 1.5 ms to pack, KL from the
whole answer 1.4e-4. In its place the k largest probabilities as float16, compressed alike: 18 kB and 1.5e-2 for k = 2,
38 kB and 1.4e-3 for k = 4. All square roots in 8 bits: 26 kB and 1.5e-5.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from multas_ray.tasks.packed import TINY, compress, decompress, read_head, take_array

BLOCK = 8
"""Side of the blocks of the cosine transform, in pixels of the answer."""
STEP = 0.02
"""Step of the transform's coefficients, in square roots of probabilities."""


def pack(logits: Tensor) -> list[bytes]:
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
    return [compress(logits.shape[1:], (row,)) for row in counted]


def unpack(packed: Sequence[bytes], device: torch.device) -> Tensor:
    """Unpack an answer for n images, n >= 1, as logarithms of probabilities (n, C, h, w), float32."""
    shapes, buffers = zip(*map(_open, packed), strict=True)
    rows = [take_array(buffer, np.uint16, len(buffer) // 2)[0] for buffer in buffers]
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
    """Return the orthonormal discrete cosine transform (type II), (BLOCK, BLOCK) float32, one frequency a row."""
    place = (torch.arange(BLOCK) + 0.5) * math.pi / BLOCK
    basis = torch.cos(torch.arange(BLOCK)[:, None] * place) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis.to(device)


def check(data: bytes, expected: tuple[int, int, int]) -> None:
    """Check a packed answer that was read from a file; any numbers of the right count are an answer.

    Args:
        data: the packed answer.
        expected: shape (C, h, w) that it must have.

    Raises:
        ValueError: the bytes are no packed answer, or one of another shape.
    """
    shape, _ = read_head(data)
    if shape != expected:
        raise ValueError(f"of the shape {shape}, not {expected}")
    _open(data)


def _open(data: bytes) -> tuple[tuple[int, ...], memoryview]:
    """Return the shape (C, h, w), and C * h * w uint16: the transform's bins, numbered from zero to both sides."""
    shape, size = read_head(data)
    if size != 2 * math.prod(shape):
        raise ValueError("of another size than it says")
    return shape, decompress(data, size)
