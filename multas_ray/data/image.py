"""Decoding of images: the one place where the bytes of a file become pixels.

Each image of a data set was decoded here once before it was stored, by the same decoders as in training, so that
training meets no image that it cannot decode.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from multas_ray.data.reject import Reject

Image.init()
FORMATS: list[str] = [
    name for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000") if name in Image.OPEN
]
"""Formats that are read, whatever a file's name says. Pillow knows more: EPS, for example, it gives to another program.
The pictures of several frames that cameras write (MPO) begin with a JPEG and count as JPEG."""
MOST_PIXELS = 178_956_970
"""Largest number of pixels of an image: beyond it Pillow suspects a small file made to fill the memory."""
END_OF_JPEG = b"\xff\xd9"
# Pillow warns of files that it reads all the same.
warnings.filterwarnings("ignore", module=r"PIL\.")


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


@contextmanager
def opened(data: bytes, reason: str = "broken image") -> Iterator[Image.Image]:
    """Open an image: its header is read, its pixels are not.

    Args:
        data: bytes of the file.
        reason: reason of the rejection of a broken image.

    Raises:
        Reject: the image is too large, of another format, or broken; also if its pixels, read inside the block, are.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except Reject:
        raise
    except Image.DecompressionBombError:
        most = MOST_PIXELS // 1_000_000
        raise Reject("too large", f"more than {most} million pixels; cut it into tiles or shrink it") from None
    except UnidentifiedImageError:
        raise Reject(reason, f"{_kind(data)}; readable are {', '.join(FORMATS)}") from None
    # A corrupt file can make decoders raise anything: SyntaxError, struct.error and more have been seen.
    except Exception as error:
        raise Reject(reason, str(error) or type(error).__name__) from None


def _kind(data: bytes) -> str:
    if not data:
        return "an empty file"
    return f"no image that is known here: it begins with {data[:8]!r}"


def upright_size(data: bytes) -> tuple[int, int, int]:
    """Read the size of an image as viewers show it, from its header alone.

    Returns:
        Height, width and EXIF orientation of the file, 1 to 8.

    Raises:
        Reject: the header is not readable.
    """
    with opened(data) as image:
        turn = _orientation(image)
        return (image.width, image.height, turn) if turn >= 5 else (image.height, image.width, turn)


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    if image.format != "JPEG":
        # Other formats may store EXIF behind the pixels, where Pillow looks for it. Broken pixels are an error here.
        image.load()
    try:
        turn = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # Broken EXIF turns nothing, in viewers as here.
        return 1
    return turn if 1 <= turn <= 8 else 1


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
        _check_size(image, size, "image")
        turn = _orientation(image) if upright else 1
        if image.format == "JPEG" and image.mode in ("RGB", "L") and turn == 1:
            # The same pixels as Pillow's, and 0.3 of 1.1 ms less for 640 x 426. Not for PNGs, some of which crash
            # torchvision: 30,000 JPEGs with flipped, lost and added bytes were decoded or refused.
            try:
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                pixels: Tensor = decode_jpeg(encoded, ImageReadMode.RGB)
                return pixels
            except RuntimeError as error:
                # Without the place in torchvision's source, which comes first.
                raise Reject("broken image", str(error).splitlines()[0].rpartition(", ")[2]) from None
        return torch.from_numpy(np.array(_as_rgb(image if turn == 1 else _turned(image)))).permute(2, 0, 1)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to upright RGB, as viewers show it.

    Raises:
        Reject: the image has no RGB meaning.
    """
    return _as_rgb(image if _orientation(image) == 1 else _turned(image))


def _turned(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # The upper eight bits, as OpenCV takes them; Pillow would clip to 0..255.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode.startswith(("I", "F")):
        raise Reject("not convertible to RGB", f"mode {image.mode}: pixels of 32 bits have no brightness of their own")
    try:
        return image.convert("RGB")
    except ValueError as error:  # Pillow's modes of premultiplied colours
        raise Reject("not convertible to RGB", str(error)) from None


def decode_labels(data: bytes, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the values of a mask: indices of a palette, or grey levels.

    Args:
        data: bytes of the file.
        size: height and width that the mask must have, checked before memory is taken for its pixels.

    Returns:
        (H, W) uint8.

    Raises:
        Reject: the mask is broken, of another mode, or of another size.
    """
    with opened(data, "broken mask") as image:
        _check_size(image, size, "mask")
        if image.mode not in ("P", "L"):
            raise Reject("broken mask", f"class ids are needed (a grey or palette PNG), found mode {image.mode}")
        return np.array(image)


def _check_size(image: Image.Image, size: tuple[int, int] | None, what: str) -> None:
    if size is not None and (image.height, image.width) != size:
        pixels = f"it has {image.width}x{image.height} pixels"
        raise Reject(f"{what} of another size", f"{pixels}, its row says {size[1]}x{size[0]}")


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
        turn = _orientation(image) if exif else 1
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


def encode(image: Image.Image, format: str) -> bytes:
    """Encode an image as JPEG (quality 95) or PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}))
    return buffer.getvalue()


def turn_boxes(boxes: np.ndarray, height: int, width: int, orientation: int) -> np.ndarray:
    """Convert boxes from the frame of an image as its file stores it to that of the upright image.

    Args:
        boxes: (N, 4) x1 y1 x2 y2 in pixels.
        height: height of the file's image.
        width: width of the file's image.
        orientation: EXIF orientation, 1 to 8.
    """
    x1, y1, x2, y2 = boxes.reshape(-1, 4).T
    if orientation in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    if orientation >= 5:
        x1, y1, x2, y2 = y1, x1, y2, x2
    return np.stack([x1, y1, x2, y2], axis=1)


def turn_mask(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a mask (H, W) from the frame of an image as its file stores it to that of the upright image."""
    if orientation in (2, 3, 7, 8):
        mask = mask[:, ::-1]
    if orientation in (3, 4, 6, 7):
        mask = mask[::-1]
    return np.ascontiguousarray(mask.T if orientation >= 5 else mask)
