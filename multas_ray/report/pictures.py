"""Images with boxes, captions and masks drawn on them, and grids of such pictures with a legend."""

import colorsys
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from multas_ray.tasks.segmentation.rows import IGNORE

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
FONT_SIZE = 12
MASK_ALPHA = 0.45
SHOWN_SCORE = 0.3
"""Lowest score of detections that are drawn."""
SHORTEST, LONGEST = 256, 640
"""Pixels of a picture's longer side. A smaller image is enlarged by a whole factor, so that captions stay legible; a
larger one is shrunk."""
PAPER = 255
"""Grey value between and beside pictures."""
GAP = 6
"""Pixels between pictures."""
STRIP = 22
"""Height in pixels of a line of text."""

BACKGROUND = "background"
"""Pixel class that is left untinted if it is the first."""
SHADES = ((0.85, 0.75), (0.95, 1.0), (0.55, 1.0))
"""Saturation and value of the class colours: deep, vivid, pale."""

Color = tuple[int, int, int]


def color(index: int) -> Color:
    """RGB of a palette's class.

    Hues go round by the golden ratio, so that neighbours in the list of classes are far apart however many there
    are. Hues that come close are 5, 8 or 13 classes apart, and so never of the same of three shades.

    Args:
        index: number of the class, from 1.
    """
    hue = (0.02 + index * 0.618034) % 1
    saturation, value = SHADES[index % len(SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


class Palette:
    """Colours of a data set's or network's classes. They go by name: a class has one colour, in boxes and masks."""

    def __init__(self, det_classes: Sequence[str], seg_classes: Sequence[str]) -> None:
        """Assign the colours.

        Args:
            det_classes: names by label; may be empty.
            seg_classes: names by mask value; may be empty.
        """
        self.det_classes, self.seg_classes = list(det_classes), list(seg_classes)
        self.untinted = {0, IGNORE} if self.seg_classes[:1] == [BACKGROUND] else {IGNORE}
        """Mask values without a colour."""
        tinted = [name for value, name in enumerate(self.seg_classes) if value not in self.untinted]
        names = dict.fromkeys([*self.det_classes, *tinted])
        self.colors: dict[str, Color] = {name: color(index) for index, name in enumerate(names, start=1)}


@dataclass(frozen=True)
class Picture:
    """A drawn image, and the classes that are seen in it."""

    pixels: Tensor
    """(3, h, w) uint8."""
    classes: frozenset[str] = frozenset()
    """Names of classes that have a colour."""


def picture_size(height: int, width: int, longest: int = LONGEST) -> tuple[int, int]:
    """Height and width in pixels in which an image of this size is drawn."""
    side = max(height, width)
    factor = longest / side if side > longest else max(1, math.ceil(SHORTEST / side))
    return max(1, round(factor * height)), max(1, round(factor * width))


def overlay(
    image: Tensor,
    palette: Palette,
    boxes: Tensor | None = None,
    labels: Sequence[int] = (),
    captions: Sequence[str] = (),
    mask: Tensor | None = None,
    longest: int = LONGEST,
) -> Picture:
    """Draw annotations or predictions on an image, brought to its `picture_size` first.

    Args:
        image: (3, H, W) uint8.
        palette: colours and names of the classes.
        boxes: (N, 4) x1 y1 x2 y2 in pixels of the image.
        labels: N object labels of the palette.
        captions: N texts.
        mask: (H, W) uint8 class ids of the palette: background is left untouched, 255 (ignore) hatched in light grey,
            the others are tinted and outlined.
        longest: pixels of the picture's longer side at most.
    """
    size = height, width = picture_size(image.shape[-2], image.shape[-1], longest)
    pixels = resize(image.cpu().as_subclass(Tensor), list(size), antialias=True)
    shown: set[str] = set()
    if mask is not None:
        mask = resize(mask.cpu().as_subclass(Tensor)[None], list(size), InterpolationMode.NEAREST)[0]
        tinted = [value for value in mask.unique().tolist() if value not in palette.untinted]
        shown |= {palette.seg_classes[value] for value in tinted}
        pixels = _draw_mask(pixels, mask, tinted, [palette.colors[palette.seg_classes[value]] for value in tinted])
    if boxes is not None and len(boxes):
        # The first box, of a prediction that of the highest score, is drawn last: on top.
        names = [palette.det_classes[label] for label in reversed(labels)]
        shown |= set(names)
        colors = [palette.colors[name] for name in names]
        factor = torch.tensor([width, height]) / torch.tensor([image.shape[-1], image.shape[-2]])
        limit = torch.tensor([width, height, width, height]) - 1
        placed = torch.minimum((boxes.cpu().as_subclass(Tensor).float() * factor.repeat(2)).clamp(min=0), limit)
        placed = placed.flip(0)
        pixels = draw_bounding_boxes(pixels, placed, colors=colors, width=2)
        pixels = _draw_captions(pixels, placed, captions[::-1], colors)
    return Picture(pixels, frozenset(shown))


def _draw_captions(picture: Tensor, boxes: Tensor, captions: Sequence[str], colors: Sequence[Color]) -> Tensor:
    """Write each caption in its box's upper left corner, moved into the picture."""
    canvas = to_pil_image(picture)
    draw, font = ImageDraw.Draw(canvas), ImageFont.truetype(FONT, FONT_SIZE)
    height = sum(font.getmetrics())
    for (x1, y1, _, _), caption, paper in zip(boxes.tolist(), captions, colors, strict=True):
        width = font.getlength(caption) + 4
        x = max(0, min(x1, canvas.width - width))
        y = max(0, min(y1, canvas.height - height))
        draw.rectangle((x, y, x + width, y + height), fill=paper)
        draw.text((x + 2, y), caption, fill=_ink(paper), font=font)
    return _pixels(canvas)


def _draw_mask(picture: Tensor, mask: Tensor, tinted: Sequence[int], colors: list[Color]) -> Tensor:
    if tinted:
        regions = torch.stack([mask == value for value in tinted])
        picture = draw_segmentation_masks(picture, regions, alpha=MASK_ALPHA, colors=colors)
        outlines = regions & ~_eroded(regions)
        picture = draw_segmentation_masks(picture, outlines, alpha=1.0, colors=colors)
    rows, columns = torch.meshgrid(torch.arange(mask.shape[0]), torch.arange(mask.shape[1]), indexing="ij")
    hatch = (mask == IGNORE) & ((rows + columns) % 8 < 2)
    return torch.where(hatch, torch.tensor(211, dtype=torch.uint8), picture)


def _eroded(regions: Tensor) -> Tensor:
    """Regions, (K, H, W) bool, without their outermost pixels; the picture's border is no edge."""
    return ~(F.max_pool2d((~regions).float(), kernel_size=3, stride=1, padding=1) > 0)


def _ink(paper: Color) -> Color:
    """Black or white, whichever is more legible on a colour."""
    red, green, blue = paper
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)


def _pixels(image: Image.Image) -> Tensor:
    """(3, h, w) uint8."""
    # torchvision is untyped.
    pixels: Tensor = pil_to_tensor(image)
    return pixels


def captioned(picture: Picture, text: str) -> Picture:
    """Put a line of text above a picture; text that is wider than the picture ends in an ellipsis."""
    return Picture(torch.cat([_strip(text, picture.pixels.shape[2]), picture.pixels], dim=1), picture.classes)


def with_legend(picture: Picture, palette: Palette) -> Tensor:
    """Put the colours of the classes in a picture beneath it.

    Returns:
        (3, h, w) uint8 with the picture at the top left.
    """
    if not picture.classes:
        return picture.pixels
    key = legend(palette, picture.classes, picture.pixels.shape[2])
    return torch.cat([F.pad(each, (0, key.shape[2] - each.shape[2]), value=PAPER) for each in (picture.pixels, key)], 1)


def legend(palette: Palette, names: Iterable[str], width: int) -> Tensor:
    """Draw a key to the colours of some classes, in the palette's order.

    Returns:
        (3, h, w) uint8; w is `width`, or that of the widest name.
    """
    font = ImageFont.truetype(FONT, FONT_SIZE)
    wanted = set(names)
    shown = [name for name in palette.colors if name in wanted]
    advances = {name: STRIP + round(font.getlength(name)) + 2 * GAP for name in shown}
    width = max([width, *(GAP + advance for advance in advances.values())])
    entries, x, y = [], GAP, 0
    for name, advance in advances.items():
        if x > GAP and x + advance > width:
            x, y = GAP, y + STRIP
        entries.append((x, y, name))
        x += advance
    canvas = Image.new("RGB", (width, y + STRIP), (PAPER,) * 3)
    draw = ImageDraw.Draw(canvas)
    for x, y, name in entries:
        draw.rectangle((x, y + 5, x + 12, y + 17), fill=palette.colors[name])
        draw.text((x + STRIP - 4, y + STRIP // 2), name, fill="black", font=font, anchor="lm")
    return _pixels(canvas)


def grid(rows: Sequence[Sequence[Picture]], titles: Sequence[str], palette: Palette) -> bytes:
    """Arrange rows of pictures, with the colours of the classes in them at the bottom.

    A column is as wide as its widest picture, a row as high as its highest.

    Args:
        rows: may differ in length, and pictures in size.
        titles: of the columns from the left; without any, there is no line of titles.
        palette: colours of the pictures' classes.

    Returns:
        A PNG.
    """
    columns = max([len(row) for row in rows] + [len(titles)])
    widths = [max([row[k].pixels.shape[2] for row in rows if k < len(row)], default=STRIP) for k in range(columns)]
    lefts = [GAP + sum(widths[:k]) + GAP * k for k in range(columns)]
    lines = [[_strip(title, width) for title, width in zip(titles, widths, strict=False)]]
    lines += [[picture.pixels for picture in row] for row in rows]
    total = sum(widths) + GAP * (columns + 1)
    placed, y = [], 0
    for line in lines:
        placed += [(picture, left, y) for picture, left in zip(line, lefts, strict=False)]
        y += max((picture.shape[1] for picture in line), default=0) + GAP
    classes = frozenset[str]().union(*(picture.classes for row in rows for picture in row))
    if classes:
        placed.append((legend(palette, classes, total), 0, y))
        y += placed[-1][0].shape[1]
        total = max(total, placed[-1][0].shape[2])
    canvas = Image.new("RGB", (total, y), (PAPER,) * 3)
    for picture, left, top in placed:
        canvas.paste(to_pil_image(picture), (left, top))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _strip(text: str, width: int) -> Tensor:
    """One line of text as (3, STRIP, width) uint8; text that is wider ends in an ellipsis."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    shown = text
    while shown and font.getlength(shown) > width - 4:
        shown = shown.removesuffix("…")[:-1] + "…" if len(shown) > 1 else ""
    canvas = Image.new("RGB", (width, STRIP), (PAPER,) * 3)
    ImageDraw.Draw(canvas).text((2, STRIP // 2), shown, fill="black", font=font, anchor="lm")
    return _pixels(canvas)
