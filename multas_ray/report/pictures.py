"""Images with boxes, captions and masks drawn on them, and grids of such pictures."""

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from multas_ray.data.schema import IGNORE

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
FONT_SIZE = 12
MASK_ALPHA = 0.45
SHOWN_SCORE = 0.3
"""Detections below it are not drawn."""
PAPER = 255
"""Grey value between and beside pictures."""
GAP = 6
"""Pixels between pictures."""
STRIP = 22
"""Height in pixels of a line of text."""

SHADES = ((0.85, 0.75), (0.95, 1.0), (0.55, 1.0))
"""Saturation and value of the class colours: deep, vivid, pale."""

Color = tuple[int, int, int]


def color(index: int) -> Color:
    """RGB of pixel class `index`, 1 and up; object label i has the colour of pixel class i + 1.

    Hues go round by the golden ratio, so that neighbours in the list of classes are far apart however many there
    are. Hues that come close are 5, 8 or 13 classes apart, and so never of the same of three shades.
    """
    hue = (0.02 + index * 0.618034) % 1
    saturation, value = SHADES[index % len(SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    image: Tensor,
    boxes: Tensor | None = None,
    captions: Sequence[str] | None = None,
    labels: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    scale: int = 2,
) -> Tensor:
    """Draw annotations or predictions on an image, which is enlarged first so that captions stay legible.

    Args:
        image: (3, H, W) uint8.
        boxes: (N, 4) x1 y1 x2 y2 in pixels of the image.
        captions: N texts.
        labels: N object labels, 0 and up; they choose the colours.
        mask: (H, W) uint8 class ids: 0 is left untouched, 255 (ignore) hatched in light grey, the others are tinted
            and outlined.
        scale: factor of enlargement.

    Returns:
        (3, H * scale, W * scale) uint8.
    """
    height, width = image.shape[1] * scale, image.shape[2] * scale
    picture = resize(image.cpu(), [height, width], antialias=True)
    if mask is not None:
        picture = _draw_mask(picture, mask.cpu().repeat_interleave(scale, 0).repeat_interleave(scale, 1))
    if boxes is None or not len(boxes):
        return picture
    colors = [color(int(label) + 1) for label in labels] if labels is not None else [color(1)] * len(boxes)
    limit = torch.tensor([width, height, width, height]) - 1
    placed = torch.minimum((boxes.cpu().float() * scale).clamp(min=0), limit)
    picture = draw_bounding_boxes(picture, placed, colors=colors, width=2)
    return picture if captions is None else _draw_captions(picture, placed, captions, colors)


def _draw_captions(picture: Tensor, boxes: Tensor, captions: Sequence[str], colors: Sequence[Color]) -> Tensor:
    """Write each caption in its box's upper left corner, moved so far that all of it lies in the picture."""
    canvas = to_pil_image(picture)
    draw, font = ImageDraw.Draw(canvas), ImageFont.truetype(FONT, FONT_SIZE)
    height = sum(font.getmetrics())
    for (x1, y1, _, _), caption, paper in zip(boxes.tolist(), captions, colors, strict=True):
        width = font.getlength(caption) + 4
        x = max(0, min(x1, canvas.width - width))
        y = max(0, min(y1, canvas.height - height))
        draw.rectangle((x, y, x + width, y + height), fill=paper)
        draw.text((x + 2, y), caption, fill=_ink(paper), font=font)
    return pil_to_tensor(canvas)


def _draw_mask(picture: Tensor, mask: Tensor) -> Tensor:
    classes = [index for index in mask.unique().tolist() if index not in (0, IGNORE)]
    if classes:
        regions = torch.stack([mask == index for index in classes])
        colors = [color(index) for index in classes]
        picture = draw_segmentation_masks(picture, regions, alpha=MASK_ALPHA, colors=colors)
        outlines = regions & ~_eroded(regions)
        picture = draw_segmentation_masks(picture, outlines, alpha=1.0, colors=colors)
    rows, columns = torch.meshgrid(torch.arange(mask.shape[0]), torch.arange(mask.shape[1]), indexing="ij")
    hatch = (mask == IGNORE) & ((rows + columns) % 8 < 2)
    return torch.where(hatch, torch.tensor(211, dtype=torch.uint8), picture)


def _eroded(regions: Tensor) -> Tensor:
    """(K, H, W) bool regions without their outermost pixel; the picture's border is no edge."""
    return ~(F.max_pool2d((~regions).float(), kernel_size=3, stride=1, padding=1) > 0)


def _ink(paper: Color) -> Color:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = paper
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)


def captioned(picture: Tensor, text: str) -> Tensor:
    """Put a line of text above a (3, h, w) uint8 picture; what does not fit its width ends in an ellipsis."""
    return torch.cat([_strip(text, picture.shape[2]), picture], dim=1)


def legend(names: Sequence[str], width: int) -> Tensor:
    """(3, h, width) uint8 key to the colours: names of the pixel classes, background first (it has no colour)."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    entries, x, y = [], GAP, 0
    for index, name in enumerate(names[1:], start=1):
        advance = STRIP + round(font.getlength(name)) + 2 * GAP
        if x > GAP and x + advance > width:
            x, y = GAP, y + STRIP
        entries.append((x, y, index, name))
        x += advance
    canvas = Image.new("RGB", (width, y + STRIP), (PAPER,) * 3)
    draw = ImageDraw.Draw(canvas)
    for x, y, index, name in entries:
        draw.rectangle((x, y + 5, x + 12, y + 17), fill=color(index))
        draw.text((x + STRIP - 4, y + STRIP // 2), name, fill="black", font=font, anchor="lm")
    return pil_to_tensor(canvas)


def grid(rows: Sequence[Sequence[Tensor]], titles: Sequence[str], classes: Sequence[str] = ()) -> bytes:
    """Rows of pictures as one PNG. A column is as wide as its widest picture, a row as high as its highest.

    Args:
        rows: (3, h, w) uint8 pictures; rows may differ in length, pictures in size.
        titles: of the columns from the left; none: no line of titles.
        classes: pixel classes, background first, for a key to the colours at the bottom.
    """
    columns = max([len(row) for row in rows] + [len(titles)])
    widths = [max([row[k].shape[2] for row in rows if k < len(row)], default=STRIP) for k in range(columns)]
    lefts = [GAP + sum(widths[:k]) + GAP * k for k in range(columns)]
    lines = [[_strip(title, width) for title, width in zip(titles, widths, strict=False)], *rows]
    total = sum(widths) + GAP * (columns + 1)
    placed, y = [], 0
    for line in lines:
        placed += [(picture, left, y) for picture, left in zip(line, lefts, strict=False)]
        y += max((picture.shape[1] for picture in line), default=0) + GAP
    if len(classes) > 1:
        placed.append((legend(classes, total), 0, y))
        y += placed[-1][0].shape[1]
    canvas = Image.new("RGB", (total, y), (PAPER,) * 3)
    for picture, left, top in placed:
        canvas.paste(to_pil_image(picture), (left, top))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _strip(text: str, width: int) -> Tensor:
    """(3, STRIP, width) uint8: one line of text, cut where it does not fit."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    shown = text
    while shown and font.getlength(shown) > width - 4:
        shown = shown.removesuffix("…")[:-1] + "…" if len(shown) > 1 else ""
    canvas = Image.new("RGB", (width, STRIP), (PAPER,) * 3)
    ImageDraw.Draw(canvas).text((2, STRIP // 2), shown, fill="black", font=font, anchor="lm")
    return pil_to_tensor(canvas)
