"""Which part of an image is seen, and where it lies, so that boxes, masks and answers follow. NumPy only."""

from typing import NamedTuple

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


class View(NamedTuple):
    """Rectangle in the pixels of an image, which is shown as a square. It may reach beyond the image."""

    left: int
    top: int
    width: int
    height: int
    flipped: bool = False
    """Whether left and right are exchanged."""

    def snapped(self, step: int) -> "View":
        """Move every edge to the nearest multiple of `step` pixels."""
        left, top = round(self.left / step), round(self.top / step)
        right, bottom = round((self.left + self.width) / step), round((self.top + self.height) / step)
        return View(step * left, step * top, step * (right - left), step * (bottom - top), self.flipped)

    def reduced(self, factor: int) -> "View":
        """Return the view in the pixels of a smaller copy of the image; its edges are multiples of the factor."""
        left, top, width, height = (edge // factor for edge in self[:4])
        return View(left, top, width, height, self.flipped)

    def geometry(self, height: int, width: int) -> Geometry:
        """Return the map from an image of this size in pixels to the square."""
        x_scale, x_shift = width / self.width, -self.left / self.width
        if self.flipped:
            x_scale, x_shift = -x_scale, 1 - x_shift
        return Geometry((x_scale, height / self.height), (x_shift, -self.top / self.height))

    def boxes(self, boxes: np.ndarray, size: int) -> np.ndarray:
        """Move boxes (k, 4) x1 y1 x2 y2 to the pixels of a square of this size, and clip them to it."""
        origin = np.array([self.left, self.top] * 2, np.float32)
        moved = (boxes - origin) * (size / np.array([self.width, self.height] * 2, np.float32))
        if self.flipped:
            moved[:, [0, 2]] = size - moved[:, [2, 0]]
        return moved.clip(0, size)

    def cut(self, pixels: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
        """Cut the rectangle out of an image (H, W, C): a part of it, or a copy with `fill` beyond the image."""
        rows, columns = self._inside(*pixels.shape[:2])
        inside = pixels[rows, columns]
        if inside.shape[:2] == (self.height, self.width):
            return inside
        whole = np.empty((self.height, self.width, pixels.shape[2]), pixels.dtype)
        whole[:] = fill
        top, left = rows.start - self.top, columns.start - self.left
        whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return whole

    def nearest(self, mask: np.ndarray, size: int, fill: int) -> np.ndarray:
        """Show a mask (H, W) in a square (size, size): the value at each pixel's centre; `fill` beyond it."""
        centres = (np.arange(size) + 0.5) / size
        rows = np.floor(self.top + centres * self.height).astype(np.int64)
        columns = np.floor(self.left + (1 - centres if self.flipped else centres) * self.width).astype(np.int64)
        height, width = mask.shape
        inside = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        # Row by row, then column by column: a sixth of the time of both at once.
        seen = mask.take(rows.clip(0, height - 1), axis=0).take(columns.clip(0, width - 1), axis=1)
        seen[~inside[0]] = fill
        seen[:, ~inside[1]] = fill
        return seen

    def _inside(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns of the rectangle that lie in an image of this size."""
        rows = slice(max(0, self.top), max(0, min(height, self.top + self.height)))
        return rows, slice(max(0, self.left), max(0, min(width, self.left + self.width)))


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
