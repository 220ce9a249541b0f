"""Packed answers of teachers: a head of four integers, and a body that is compressed without loss."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from multas_ray.errors import first_line

TINY = 1e-7
"""Probability that stands for zero, so that its logarithm is finite."""
CODEC, LEVEL = "zstd", 9
HEAD = 16
"""Bytes of the head: four uint32, the three of the shape and the size of the body before compression."""


def compress(shape: Sequence[int], parts: Sequence[np.ndarray]) -> bytes:
    """Compress a shape and arrays into the bytes of a packed answer.

    An array's bytes are written in planes, all first bytes, then all second ones: bytes of one plane are alike, which
    compresses better.

    Args:
        shape: three integers.
        parts: arrays of any shape and type, one or more.
    """
    body = b"".join(part.reshape(-1, 1).view(np.uint8).T.tobytes() for part in parts)
    prefix = np.array([*shape, len(body)], np.uint32).tobytes()
    compressed: bytes = pa.Codec(CODEC, compression_level=LEVEL).compress(body, asbytes=True)
    return prefix + compressed


def read_head(data: bytes) -> tuple[tuple[int, ...], int]:
    """Read the head of a packed answer.

    Returns:
        The shape (three integers), and the size of the body in bytes before compression.

    Raises:
        ValueError: the answer is shorter than a head.
    """
    if len(data) < HEAD:
        raise ValueError("cut short")
    *shape, size = np.frombuffer(data, np.uint32, 4).tolist()
    return tuple(shape), size


def decompress(data: bytes, size: int) -> memoryview:
    """Decompress the body of a packed answer.

    Args:
        data: the packed answer, head included.
        size: size of the body in bytes before compression.

    Raises:
        ValueError: the body is broken.
    """
    try:
        return memoryview(pa.Codec(CODEC).decompress(memoryview(data)[HEAD:], size))
    except OSError as error:
        raise ValueError(first_line(error)) from None


def take_array(buffer: memoryview, dtype: type, count: int) -> tuple[np.ndarray, memoryview]:
    """Read the array (count,) at the beginning of a body.

    Returns:
        The array, and the rest of the body.

    Raises:
        ValueError: the body is too short.
    """
    width = np.dtype(dtype).itemsize
    size = count * width
    if size > len(buffer):
        raise ValueError("cut short")
    planes = np.frombuffer(buffer[:size], np.uint8).reshape(width, count)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1), buffer[size:]


def join(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Concatenate arrays along their first axis into a tensor."""
    return torch.as_tensor(np.concatenate(arrays), device=device)
