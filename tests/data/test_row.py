"""Rows are checked against the data contract before they are written."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_image

from multas_ray.data.row import Reject, Row, as_rgb, check_row, encode
from tests.data.rows import DET, HEIGHT, SEG, WIDTH, make_row


def reason_of(row: Row) -> str:
    """Why a row is rejected."""
    with pytest.raises(Reject) as caught:
        check_row(row, len(DET), len(SEG))
    return caught.value.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: replace(row, image=row.image[: len(row.image) // 2]), "broken image"),
        (lambda row: replace(row, image=b"no image"), "broken image"),
        (lambda row: replace(row, width=31), "annotation of another size"),
        (lambda row: replace(row, boxes=np.array([[1, 2, 32.5, 12]], np.float32)), "box outside its image"),
        (lambda row: replace(row, boxes=np.array([[-3, 2, 9, 12]], np.float32)), "box outside its image"),
        (lambda row: replace(row, boxes=np.array([[1, 2, np.nan, 12]], np.float32)), "box outside its image"),
        (lambda row: replace(row, boxes=np.array([[9, 2, 1, 12]], np.float32)), "inverted box"),
        (lambda row: replace(row, labels=np.array([2], np.int32)), "unknown class"),
        (lambda row: replace(row, mask=np.zeros((HEIGHT, WIDTH + 1), np.uint8)), "mask of another size"),
        (lambda row: replace(row, mask=np.full((HEIGHT, WIDTH), 3, np.uint8)), "unknown class"),
    ],
)
def test_bad_rows_are_rejected(change: Callable[[Row], Row], reason: str) -> None:
    assert reason_of(change(make_row())) == reason


def test_boxes_are_clipped_and_those_without_area_dropped() -> None:
    row = make_row(boxes=[[-2, 0, 32, 22], [5, 5, 5, 9], [-1, 3, 0, 6], [1, 1, 2, 2]])
    row.labels = np.array([0, 1, 1, 1], np.int32)
    row.difficult = np.array([True, False, False, False])
    checked, clipped, dropped = check_row(row, len(DET), len(SEG))
    assert checked.boxes.tolist() == [[0, 0, 30, 20], [1, 1, 2, 2]]
    assert checked.labels.tolist() == [0, 1]
    assert checked.difficult.tolist() == [True, False]
    assert (clipped, dropped) == (1, 2)


@pytest.mark.parametrize(("mode", "format"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG")])
def test_other_modes_become_rgb(mode: str, format: str) -> None:
    data, height, width = as_rgb(encode(Image.new("RGB", (7, 5), (200, 60, 20)).convert(mode), format))
    image = Image.open(io.BytesIO(data))
    assert (image.mode, image.format, height, width) == ("RGB", format, 5, 7)


def test_sixteen_bit_grey_is_no_rgb() -> None:
    with pytest.raises(Reject, match="not convertible"):
        as_rgb(encode(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "PNG"))


def test_sixteen_bit_rgb_becomes_eight_bit() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = b"\0" + struct.pack(">6H", 0xFFFF, 0x8000, 0, 0x1234, 0x4321, 0xABCD)
    data, *_ = as_rgb(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )
    assert decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8)).dtype == torch.uint8
