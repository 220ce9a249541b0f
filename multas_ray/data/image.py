"""Decoding of images: the one place where the bytes of a file become pixels.

Each image of a data set was decoded here once before it was stored, by the same decoders as in training, so that
training meets no image that it cannot decode.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize_image

from multas_ray.data.geometry import View
from multas_ray.data.pillow import as_rgb, check_size, encode, opened, orientation, turned, upright_size
from multas_ray.data.reject import Reject

START_OF_JPEG, END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"
REDUCTIONS = (8, 4, 2)
"""Factors by which a JPEG can be decoded smaller, largest first: the decoder leaves out the finer waves."""
CANVAS = (124, 116, 104)
"""RGB of what a view shows beyond its image: ImageNet's mean."""


@dataclass(frozen=True)
class Stored:
    """Image as a data set stores it."""

    data: bytes
    """Bytes of an upright RGB JPEG or PNG of 8 bits."""
    height: int
    width: int
    orientation: int
    """EXIF orientation of the original file, 1 to 8; 1 where nothing was turned."""

    @property
    def file_size(self) -> tuple[int, int]:
        """Height and width of the original file's image, before it was turned."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def decode_rgb(data: bytes, *, upright: bool, size: tuple[int, int] | None = None) -> Tensor:
    """Decode the pixels of an image.

    Args:
        data: bytes of the file.
        upright: whether to turn it as EXIF says, as viewers do. Images of a data set are upright, whatever their EXIF
            says.
        size: height and width that the stored image must have, checked before memory is taken for its pixels.

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        Reject: the image is broken, too large, of another size, or has no RGB meaning.
    """
    with opened(data) as image:
        check_size(image, size, "image")
        turn = orientation(image) if upright else 1
        if image.format == "JPEG" and turn == 1 and (pixels := _plain_jpeg(data, 1, None)) is not None:
            return torch.from_numpy(pixels).permute(2, 0, 1)
        return torch.from_numpy(np.array(as_rgb(image if turn == 1 else turned(image)))).permute(2, 0, 1)


@dataclass(frozen=True)
class EncodedImage:
    """Image of a data set, decoded where it is looked at: of what is seen small, no more pixels than that needs."""

    data: bytes
    """Bytes of the file."""
    height: int
    """Height in pixels as its row gives it."""
    width: int

    def pixels(self) -> Tensor:
        """Decode all pixels (3, height, width) uint8.

        Raises:
            Reject: see `decode_rgb`.
        """
        return decode_rgb(self.data, upright=False, size=(self.height, self.width))

    def seen(self, view: View, size: int) -> tuple[Tensor, View]:
        """Show a view of the image as a square.

        Args:
            view: what to show; beyond the image is CANVAS.
            size: side of the square in pixels.

        Returns:
            Pixels (3, size, size) uint8, and the view that they show: its edges are those of the pixels of a JPEG that
            is decoded smaller, 8 pixels of the image at most.

        Raises:
            Reject: see `decode_rgb`.
        """
        jpeg, side = self.data.startswith(START_OF_JPEG), min(view.width, view.height)
        factor = next((factor for factor in REDUCTIONS if jpeg and factor * size <= side), 1)
        view = view.snapped(factor)
        pixels = _plain_jpeg(self.data, factor, (self.height, self.width)) if jpeg else None
        if pixels is None:
            pixels, factor = self.pixels().permute(1, 2, 0).numpy(), 1
        rectangle = torch.from_numpy(view.reduced(factor).cut(pixels, CANVAS)).permute(2, 0, 1)
        square = stretched(rectangle, size).numpy()[:, :, :: -1 if view.flipped else 1]
        return torch.from_numpy(np.ascontiguousarray(square)), view

    def whole(self, size: int) -> Tensor:
        """Show the whole image as a square (3, size, size) uint8.

        Raises:
            Reject: see `decode_rgb`.
        """
        return self.seen(View(0, 0, self.width, self.height), size)[0]


def upright_square(data: bytes, size: int) -> tuple[Tensor, int, int]:
    """Show an image of a file, upright and whole, as a square.

    Returns:
        Pixels (3, size, size) uint8, and the upright image's height and width.

    Raises:
        Reject: see `decode_rgb`.
    """
    if data.startswith(START_OF_JPEG):
        height, width, turn = upright_size(data)
        if turn == 1:
            return EncodedImage(data, height, width).whole(size), height, width
    pixels = decode_rgb(data, upright=True)
    return stretched(pixels, size), pixels.shape[1], pixels.shape[2]


def stretched(image: Tensor, size: int) -> Tensor:
    """Stretch images (…, 3, H, W) uint8 to `size` x `size` pixels: bilinear with antialiasing."""
    square: Tensor = resize_image(image, [size, size], antialias=True)
    return square


def _plain_jpeg(data: bytes, factor: int, size: tuple[int, int] | None) -> np.ndarray | None:
    """Decode a JPEG, smaller by a factor.

    The decoder has Pillow's pixels, in 0.31 ms for a photograph of 320 x 212 where Pillow takes 0.43; of 4000 x 3000
    pixels, 37 and 156 ms, by factors of 2 and 8 smaller 26 and 19 ms.

    Returns:
        (H / factor, W / factor, 3) uint8 RGB, rounded up; None where something is unusual, a warning included, or its
        size is not the given one: Pillow tells what, or reads it all the same.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("CMYK", "YCCK") or size not in (None, (height, width)):
            return None
        least = -(-height // factor), -(-width // factor)
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == least else None


def to_stored(data: bytes, *, exif: bool = True) -> Stored:
    """Convert an image for a data set: upright RGB, after it has been decoded in full.

    An upright RGB JPEG or PNG of 8 bits keeps its bytes. Other images are encoded anew: JPEG as JPEG (quality 95), the
    rest as PNG.

    Args:
        data: bytes of the file.
        exif: whether to turn the image as its EXIF says.

    Raises:
        Reject: the image is broken, too large, or has no RGB meaning.
    """
    with opened(data) as image:
        turn = orientation(image) if exif else 1
        name, mode, height, width = image.format, image.mode, image.height, image.width
    if name == "JPEG" and END_OF_JPEG not in data[-64:]:
        data = _with_end(data)
    pixels = decode_rgb(data, upright=exif)
    # Pillow reads 16-bit RGB as 8-bit, other decoders do not. The depth is the 25th byte of every PNG file.
    if turn == 1 and mode == "RGB" and (name == "JPEG" or (name == "PNG" and data[24] == 8)):
        return Stored(data, height, width, 1)
    rgb = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return Stored(encode(rgb, "JPEG" if name in ("JPEG", "MPO") else "PNG"), rgb.height, rgb.width, turn)


def _with_end(data: bytes) -> bytes:
    """Append the end marker to a JPEG whose pixels are complete without it; return any other JPEG unchanged."""
    data = data.removesuffix(END_OF_JPEG[:1])
    try:
        # The pixels are complete if the decoded image does not depend on the bytes that follow.
        with opened(data + END_OF_JPEG) as one, opened(data + b"\x5a" * 32 + END_OF_JPEG) as other:
            return data + END_OF_JPEG if one.tobytes() == other.tobytes() else data
    except Reject:
        return data
