"""Where an augmented image lies in its original, so that what was found in the original can follow. NumPy only."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Geometry(NamedTuple):
    """Map from an original image to its augmentation: x' = scale * x + shift, in fractions of the sides of each."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Along x and y; negative along x where the image was flipped."""
    shift: tuple[float, float] = (0.0, 0.0)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Move boxes (k, 4) x1 y1 x2 y2, in fractions; they may lie outside afterwards."""
        moved = boxes * np.array(self.scale * 2, boxes.dtype) + np.array(self.shift * 2, boxes.dtype)
        return np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], axis=1)

    def resampled(self, maps: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Resample maps that cover the original to pixels of the augmentation.

        Args:
            maps: (C, h, w).
            size: side of the result in pixels.

        Returns:
            The maps (C, size, size), bilinear and antialiased, and the share (size, size) of each pixel that lies in
            the original. Pixels outside it are zero.
        """
        columns, x_share = _weights(maps.shape[2], size, self.scale[0], self.shift[0])
        rows, y_share = _weights(maps.shape[1], size, self.scale[1], self.shift[1])
        return rows @ maps @ columns.T, y_share[:, None] * x_share


def traced(
    size: tuple[int, int], padding: Sequence[int] | None, crop: Mapping[str, Any] | None, flipped: bool
) -> Geometry:
    """Follow an image through padding, then a crop, then a flip.

    Args:
        size: height and width of the original in pixels.
        padding: pixels added at its left, top, right and bottom; None for none.
        crop: top, left, height and width in pixels of the padded image; empty or None for all of it.
        flipped: whether the result was flipped horizontally.
    """
    height, width = size
    left, top, right, bottom = padding or (0, 0, 0, 0)
    sides = [width + left + right, height + top + bottom]
    if crop:
        left, top = left - crop["left"], top - crop["top"]
        sides = [crop["width"], crop["height"]]
    x_scale, x_shift = width / sides[0], left / sides[0]
    if flipped:
        x_scale, x_shift = -x_scale, 1 - x_shift
    return Geometry((x_scale, height / sides[1]), (x_shift, top / sides[1]))


def _weights(length: int, size: int, scale: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights of resampling along one axis.

    Returns:
        (size, length) float32: weights of the original's pixels for each pixel of the result, which add up to the share
        of it that lies in the original; and this share (size,).
    """
    # Centres of the result's pixels, and their width, in pixels of the original.
    centres = ((np.arange(size) + 0.5) / size - shift) / scale * length
    step = length / (size * abs(scale))
    reach = max(1.0, step)
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / reach
    weights = np.clip(1 - distance, 0, None)
    low, high = np.clip(centres - step / 2, 0, length), np.clip(centres + step / 2, 0, length)
    share = (high - low) / step
    # At the edge the triangle reaches beyond the original: what is inside it stands for all.
    total = weights.sum(axis=1)
    weights *= (share / np.where(total > 0, total, 1))[:, None]
    return weights.astype(np.float32), share.astype(np.float32)
