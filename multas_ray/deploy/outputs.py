"""Files that predictions are written to: COCO JSON, label PNGs with the VOC palette, overlays."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.io import encode_png

from multas_ray.evaluate.annotation import Annotation
from multas_ray.formats.class_maps import voc_palette
from multas_ray.report.overlays import draw_annotation
from multas_ray.report.pictures import Palette, with_legend
from multas_ray.storage import StoragePath

LARGEST_OVERLAY = 1024
"""Longest side of an overlay in pixels: a larger image is shrunk."""
LONGEST_NAME = 200
"""Largest number of bytes of a file's name. File systems take 255, with the ending that is added to it."""


def label_png(mask: np.ndarray) -> bytes:
    """Encode a (H, W) uint8 mask of class ids as a palette PNG."""
    image = Image.fromarray(mask, "P")
    image.putpalette(voc_palette().tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=False)
    return stream.getvalue()


def overlay_png(image: Tensor, prediction: Annotation, palette: Palette, score: float) -> bytes:
    """Draw a prediction over its image, with a legend of the classes, and encode it as PNG.

    Args:
        image: (3, H, W) uint8.
        prediction: boxes, with classes and scores, and mask.
        palette: colours of the classes.
        score: least score of a box that is drawn.
    """
    overlay = draw_annotation(image, prediction, palette, score, LARGEST_OVERLAY)
    return bytes(encode_png(with_legend(overlay, palette)).numpy())


def safe_name(image_id: str) -> str:
    """Make an image's name a relative path that stays inside its folder and that file systems accept."""
    parts = [part for part in PurePosixPath(image_id).parts if part not in ("/", "//", "..")]
    return "/".join(map(_file_name, parts)) or "_"


def _file_name(part: str) -> str:
    printable = "".join(char if char.isprintable() else "_" for char in part)
    if len(printable.encode(errors="replace")) <= LONGEST_NAME:
        return printable
    digest = hashlib.sha256(part.encode(errors="replace")).hexdigest()[:16]
    return f"{printable[: LONGEST_NAME // 4 - 20]}~{digest}"


def write_coco(file: StoragePath, det_classes: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write predictions in COCO's format, one image after another.

    Ids of images, categories and annotations begin with 1. Each annotation has its `score`, so that
    `COCO(file).loadRes(annotations)` and any reader of COCO instances accept the file.

    Args:
        file: file to write.
        det_classes: object classes.
        rows: file_name, height, width, boxes (N, 4) x1 y1 x2 y2 in pixels, labels (N,) and scores (N,).
    """
    categories = [{"id": number, "name": name} for number, name in enumerate(det_classes, start=1)]
    images: list[str] = []
    count = 0
    with file.writing() as stream:
        stream.write(b'{"annotations": [\n')
        for number, row in enumerate(rows, start=1):
            image = {"id": number, "file_name": row["file_name"], "width": row["width"], "height": row["height"]}
            images.append(json.dumps(image))
            for line in _annotations(number, row):
                stream.write((",\n" * (count > 0) + json.dumps({"id": count + 1} | line)).encode())
                count += 1
        stream.write(b'\n],\n"images": [\n' + ",\n".join(images).encode())
        stream.write(b'\n],\n"categories": ' + json.dumps(categories).encode() + b"}\n")


def _annotations(image: int, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for (x1, y1, x2, y2), label, score in zip(row["boxes"], row["labels"], row["scores"], strict=True):
        box = [round(float(value), 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        yield {
            "image_id": image,
            "category_id": int(label) + 1,
            "bbox": box,
            "area": round(box[2] * box[3], 2),
            "iscrowd": 0,
            "score": round(float(score), 5),
        }
