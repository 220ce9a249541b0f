"""Packed answers of teachers: a head of four integers, and a body that is compressed without loss."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from multas_ray.errors import first_line

TINY = 1e-7
"""Probability that stands for none."""
CODEC, LEVEL = "zstd", 9
HEAD = 16
"""Bytes before what is compressed: the shape, and its size."""


def compress(shape: Sequence[int], parts: Sequence[np.ndarray]) -> bytes:
    """Shape and arrays as bytes: all first bytes of an array, then all second ones, since only the former vary much."""
    body = b"".join(part.reshape(-1, 1).view(np.uint8).T.tobytes() for part in parts)
    prefix = np.array([*shape, len(body)], np.uint32).tobytes()
    return prefix + pa.Codec(CODEC, compression_level=LEVEL).compress(body, asbytes=True)


def read_head(data: bytes) -> tuple[tuple[int, ...], int]:
    """Shape and size in bytes of a packed answer, as it begins."""
    if len(data) < HEAD:
        raise ValueError("cut short")
    *shape, size = np.frombuffer(data, np.uint32, 4).tolist()
    return tuple(shape), size


def decompress(data: bytes, size: int) -> memoryview:
    """The body of a packed answer, of this size in bytes.

    Raises:
        ValueError: it is broken.
    """
    try:
        return memoryview(pa.Codec(CODEC).decompress(memoryview(data)[HEAD:], size))
    except OSError as error:
        raise ValueError(first_line(error)) from None


def take_array(buffer: memoryview, dtype: type, count: int) -> tuple[np.ndarray, memoryview]:
    """The array that the buffer begins with, and what comes after it."""
    width = np.dtype(dtype).itemsize
    size = count * width
    if size > len(buffer):
        raise ValueError("cut short")
    planes = np.frombuffer(buffer[:size], np.uint8).reshape(width, count)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1), buffer[size:]


def join(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Arrays one after the other, as a tensor."""
    return torch.as_tensor(np.concatenate(arrays), device=device)
