"""Images are decoded alike everywhere, by their content, and whatever is wrong with one is a Reject."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from multas_ray.data.geometry import View
from multas_ray.data.image import END_OF_JPEG, EncodedImage, decode_rgb, stretched, to_stored, upright_square
from multas_ray.data.pillow import (
    FORMATS,
    decode_labels,
    encode,
    encode_labels,
    turn_boxes,
    turn_mask,
    upright_rgb,
    upright_size,
)
from multas_ray.data.reject import Reject
from tests.support.rows import with_exif

PIXELS = np.random.default_rng(1).integers(0, 256, (24, 36, 3), np.uint8).repeat(3, 0).repeat(3, 1)


def photograph(**options: object) -> bytes:
    """A JPEG of 108 x 72 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "format", "stored"),
    [
        ("L", "JPEG", "JPEG"),
        ("CMYK", "JPEG", "JPEG"),
        ("RGB", "MPO", "JPEG"),
        ("RGBA", "PNG", "PNG"),
        ("LA", "PNG", "PNG"),
        ("P", "PNG", "PNG"),
        ("1", "PNG", "PNG"),
        ("RGB", "WEBP", "PNG"),
        ("RGB", "BMP", "PNG"),
        ("RGB", "TIFF", "PNG"),
        ("P", "GIF", "PNG"),
        ("RGB", "JPEG2000", "PNG"),
        ("RGB", "AVIF", "PNG"),
    ],
)
def test_other_formats_and_modes_are_stored_as_rgb(mode: str, format: str, stored: str) -> None:
    if format not in (*FORMATS, "MPO"):
        pytest.skip(f"this Pillow has no {format}")
    data = encode(Image.new("RGB", (7, 5), (200, 60, 20)).convert(mode), format)
    found = to_stored(data)
    image = Image.open(io.BytesIO(found.data))
    assert (image.mode, image.format, found.height, found.width) == ("RGB", stored, 5, 7)
    difference = decode_rgb(found.data, upright=False).int() - decode_rgb(data, upright=True).int()
    assert difference.abs().max() <= (4 if stored == "JPEG" else 0)


def test_rgb_jpegs_and_pngs_keep_their_bytes() -> None:
    for data in (photograph(), encode(Image.fromarray(PIXELS), "PNG")):
        assert to_stored(data).data == data


def test_jpegs_have_pillows_pixels() -> None:
    """Two decoders, one result: what prepare stores and what training reads."""
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}):
        data = photograph(**options)
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode_rgb(data, upright=True).permute(1, 2, 0), np.asarray(image))


SMOOTH = np.asarray(Image.fromarray(PIXELS[::12, ::12]).resize((1003, 777), Image.Resampling.BICUBIC))
"""Without the finest waves, which a reduced image lacks."""


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("view", [View(0, 0, 1003, 777), View(100, 51, 837, 720, True), View(-90, -40, 1200, 900)])
def test_a_jpeg_that_is_decoded_smaller_is_seen_alike(factor: int, view: View) -> None:
    jpeg, png = (encode(Image.fromarray(SMOOTH), format) for format in ("JPEG", "PNG"))
    size = min(view.width, view.height) // factor
    small, shown = EncodedImage(jpeg, 777, 1003).seen(view, size)
    large, same = EncodedImage(png, 777, 1003).seen(view, size)
    assert same == view
    assert max(abs(a - b) for a, b in zip(shown[:2], view[:2], strict=True)) <= factor / 2
    assert shown.flipped == view.flipped
    assert all(edge % factor == 0 for edge in shown[:4])
    assert small.is_contiguous()
    # The edges of the view have moved by half a pixel of the square at most, of whose waves the shortest have 13.
    assert (small.int() - large.int()).abs().float().mean() < 4
    moved, _ = EncodedImage(png, 777, 1003).seen(shown, size)
    assert (small.int() - moved.int()).abs().float().mean() < 1.5


def test_no_more_is_decoded_than_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    cut = View.cut

    def noted(view: View, pixels: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
        sizes.append(pixels.shape[:2])
        return cut(view, pixels, fill)

    monkeypatch.setattr(View, "cut", noted)
    image = EncodedImage(encode(Image.fromarray(SMOOTH), "JPEG"), 777, 1003)
    for size in (90, 97, 98, 194, 195, 388, 389, 1000):
        assert image.whole(size).shape == (3, size, size)
    quarter, half, whole = (195, 251), (389, 502), (777, 1003)
    assert sizes == [(98, 126), (98, 126), quarter, quarter, half, half, whole, whole]


def test_a_reduced_image_is_refused_as_a_whole_one_is() -> None:
    data = encode(Image.fromarray(SMOOTH), "JPEG")
    for broken in (data[: len(data) // 2], data[:300], b""):
        image = EncodedImage(broken, 777, 1003)
        for size in (64, 1000):
            with pytest.raises(Reject, match="broken image"):
                image.whole(size)
    for height, width in ((776, 1003), (1003, 777)):
        with pytest.raises(Reject, match=f"its row says {width}x{height}"):
            EncodedImage(data, height, width).whole(64)


def test_an_unusual_jpeg_is_seen_all_the_same() -> None:
    """Four colours, and bytes too many, of which the fast decoder warns."""
    rgb = Image.fromarray(SMOOTH)
    usual = encode(rgb, "JPEG")
    four, one = (encode(rgb.convert(mode), "JPEG") for mode in ("CMYK", "L"))
    for data in (four, one, usual[:-2] + b"zzzz" + usual[-2:]):
        image = EncodedImage(data, 777, 1003)
        expected = stretched(image.pixels(), 96)
        assert (image.whole(96).int() - expected.int()).abs().float().mean() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_square_is_upright_and_knows_its_image(orientation: int) -> None:
    for format in ("JPEG", "PNG"):
        data = with_exif(encode(Image.fromarray(SMOOTH), format), orientation)
        square, height, width = upright_square(data, 96)
        pixels = decode_rgb(data, upright=True)
        assert (height, width) == tuple(pixels.shape[1:])
        assert (square.int() - stretched(pixels, 96).int()).abs().float().mean() < 1.5


def test_sixteen_bits_become_the_upper_eight() -> None:
    grey = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    found = decode_rgb(encode(Image.fromarray(grey), "PNG"), upright=True)
    assert found[:, 0].tolist() == [[0, 0, 1, 156, 255]] * 3

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = b"\0" + struct.pack(">6H", 0xFFFF, 0x8000, 0, 0x1234, 0x4321, 0xABCD)
    colour = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    assert to_stored(colour).data[24] == 8
    assert decode_rgb(colour, upright=True)[:, 0, 0].tolist() == [0xFF, 0x80, 0]


def test_pixels_of_32_bits_are_refused() -> None:
    for mode in ("I", "F"):
        with pytest.raises(Reject, match=f"mode {mode}"):
            to_stored(encode(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images_boxes_and_masks_alike(orientation: int) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    data = with_exif(encode(Image.fromarray(pixels), "PNG"), orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_rgb(data, upright=True)[0], upright)
    np.testing.assert_array_equal(decode_rgb(data, upright=False)[0], pixels)
    np.testing.assert_array_equal(np.asarray(upright_rgb(Image.open(io.BytesIO(data))))[..., 0], upright)
    np.testing.assert_array_equal(turn_mask(pixels, orientation), upright)
    assert upright_size(data) == (*upright.shape, orientation)
    for x1, y1, x2, y2 in ([1, 1, 3, 2], [0, 0, 6, 4], [5, 3, 6, 4]):
        inside = np.zeros((4, 6), np.uint8)
        inside[y1:y2, x1:x2] = 1
        rows, columns = np.nonzero(turn_mask(inside, orientation))
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert turn_boxes(np.array([[x1, y1, x2, y2]]), 4, 6, orientation).tolist() == [expected]


def test_an_orientation_that_is_none_turns_nothing() -> None:
    for orientation in (0, 9, 65_535):
        assert upright_size(with_exif(photograph(), orientation)) == (72, 108, 1)


def test_a_jpeg_that_lacks_its_last_bytes_alone_is_whole() -> None:
    for options in ({}, {"progressive": True}):
        data = photograph(**options)
        assert data.endswith(END_OF_JPEG)
        for cut in (1, 2):
            found = to_stored(data[:-cut])
            assert torch.equal(decode_rgb(found.data, upright=True), decode_rgb(data, upright=True))
        for cut in (200, len(data) // 2):
            with pytest.raises(Reject, match="truncated"):
                to_stored(data[:-cut])


def test_what_is_no_image_is_said_so() -> None:
    for data, detail in [(b"", "an empty file"), (b"<html>", "it begins with b'<html>'"), (b"\x89PNG\r\n\x1a\n", "")]:
        with pytest.raises(Reject) as caught:
            to_stored(data)
        assert caught.value.reason == "broken image"
        assert detail in caught.value.detail


def test_no_format_starts_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives EPS to Ghostscript, whatever the file is called."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", lambda *command, **options: started.append(command))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    for read in (to_stored, upright_size, decode_labels, lambda data: decode_rgb(data, upright=True)):
        with pytest.raises(Reject):
            read(eps)
    assert not started


def test_a_small_file_of_too_many_pixels_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    chunks += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    jpeg = bytearray(photograph())
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 60_000, 60_000)
    for data in (b"\x89PNG\r\n\x1a\n" + chunks, bytes(jpeg)):
        for read in (to_stored, upright_size, lambda data: decode_rgb(data, upright=False)):
            with pytest.raises(Reject, match="178 million pixels"):
                read(data)


def test_masks_are_palette_indices_or_grey_levels() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(values)
    palette.putpalette(bytes(range(255, -1, -1)) * 3)
    for image in (Image.fromarray(values), palette):
        np.testing.assert_array_equal(decode_labels(encode(image, "PNG")), values)
    for shape in ((1, 1), (3, 4), (70, 300)):
        values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(decode_labels(encode_labels(values)), values)
        np.testing.assert_array_equal(Image.open(io.BytesIO(encode_labels(values))), values)
    with pytest.raises(Reject, match="found mode RGB"):
        decode_labels(photograph())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's remarks on broken EXIF
def test_broken_bytes_are_decoded_or_rejected() -> None:
    """On some of these PNGs torchvision's decoder ended the process."""
    rng = random.Random(0)
    bases = [photograph(), photograph(progressive=True)]
    bases += [encode(Image.fromarray(PIXELS), format) for format in ("PNG", "GIF", "TIFF", "BMP", "WEBP")]
    outcomes = [0, 0]
    for _ in range(2000):
        data = bytearray(rng.choice(bases))
        for _ in range(rng.choice((1, 4, 16))):
            place = rng.randrange(min(len(data), rng.choice((60, len(data)))))
            kind = rng.randrange(3)
            if kind == 0:
                data[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[place : place + rng.choice((1, 30))]
            else:
                data[place:place] = rng.randbytes(rng.choice((1, 8)))
        for read in (to_stored, decode_labels, lambda data: decode_rgb(data, upright=False)):
            try:
                found = read(bytes(data))
            except Reject:
                outcomes[1] += 1
            else:
                outcomes[0] += found is not None
    assert min(outcomes) > 500


def test_a_broken_png_is_refused_however_it_is_read() -> None:
    """Pillow reads the pixels of a PNG when it is asked for EXIF; asked again after an error it has a black image."""
    whole = encode(Image.fromarray(PIXELS), "PNG")
    for place in (-20, len(whole) // 2):
        data = bytearray(whole)
        data[place] ^= 1
        for upright in (True, False):
            with pytest.raises(Reject):
                decode_rgb(bytes(data), upright=upright)
        with pytest.raises(Reject):
            to_stored(bytes(data))
