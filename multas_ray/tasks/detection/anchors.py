"""Anchor boxes and the coding of boxes against them, as in SSD (Liu et al., ECCV 2016)."""

import math
from functools import lru_cache

import torch
from torch import Tensor

FINEST_STRIDE = 8
LEVELS = 4
SCALES = (1.0, math.sqrt(2))
ASPECTS = ((1.0, 1.0), (math.sqrt(2), math.sqrt(0.5)), (math.sqrt(0.5), math.sqrt(2)))
PER_CELL = len(SCALES) * len(ASPECTS)
VARIANCES = (0.1, 0.2)
"""SSD's scaling of centre and size codes: it brings both to about unit variance."""
MAX_LOG_SIZE = 10.0
"""A decoded side is at most exp(10) anchor sides: far beyond any image, and still finite."""


@lru_cache(maxsize=64)
def anchors(
    height: int, width: int, base: float = 24.0, device: torch.device | str = "cpu", levels: int = LEVELS
) -> Tensor:
    """Lay all anchors of an input of `height` x `width` pixels: six a cell, cells row-major, levels fine to coarse.

    Level k has stride 8 * 2**k and squares of `base` * 2**k pixels; each also sqrt(2) times as large, and all with
    aspects 1:1, 2:1 and 1:2 of the same area.

    Returns:
        (A, 4) float32: cx cy w h as fractions of the input's sides, clamped to [0, 1]. The tensor is cached and
        shared: do not write into it.
    """
    shapes = torch.tensor([[scale * w, scale * h] for scale in SCALES for w, h in ASPECTS], dtype=torch.float64)
    sides = torch.tensor([width, height], dtype=torch.float64)
    # Cached across callers, so it must not become an inference tensor: autograd could not use it later.
    with torch.inference_mode(False):
        parts = []
        for level in range(levels):
            stride = FINEST_STRIDE * 2**level
            ys = (torch.arange(math.ceil(height / stride), dtype=torch.float64) + 0.5) * stride
            xs = (torch.arange(math.ceil(width / stride), dtype=torch.float64) + 0.5) * stride
            grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
            centres = (torch.stack([grid_x, grid_y], dim=-1) / sides)[:, :, None].expand(-1, -1, PER_CELL, -1)
            sizes = (shapes * base * 2**level / sides).expand_as(centres)
            parts.append(torch.cat([centres, sizes], dim=-1).reshape(-1, 4))
        return torch.cat(parts).clamp(0, 1).to(device=device, dtype=torch.float32)


def count_anchors(size: int, levels: int) -> int:
    """Count the `anchors` of a square input of this side in pixels."""
    return sum(PER_CELL * math.ceil(size / (FINEST_STRIDE * 2**level)) ** 2 for level in range(levels))


def corners(boxes: Tensor) -> Tensor:
    """Convert boxes (..., 4) from cx cy w h to x1 y1 x2 y2."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Encode boxes relative to their anchors.

    Args:
        boxes: (..., A, 4) x1 y1 x2 y2, normalised; a side of zero is taken as 1e-6.
        anchors: (A, 4) cx cy w h, normalised.

    Returns:
        (..., A, 4): centre offset in anchor sides / 0.1, log of the side ratio / 0.2.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    offset = (centre - anchors[:, :2]) / (VARIANCES[0] * anchors[:, 2:])
    return torch.cat([offset, torch.log(size / anchors[:, 2:]) / VARIANCES[1]], dim=-1)


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """Decode boxes: the inverse of `encode`.

    Args:
        codes: (..., A, 4).
        anchors: (A, 4) cx cy w h, normalised.

    Returns:
        (..., A, 4) x1 y1 x2 y2, normalised, not clipped to the image.
    """
    centre = anchors[:, :2] + codes[..., :2] * VARIANCES[0] * anchors[:, 2:]
    size = anchors[:, 2:] * torch.exp((codes[..., 2:] * VARIANCES[1]).clamp(max=MAX_LOG_SIZE))
    return corners(torch.cat([centre, size], dim=-1))
