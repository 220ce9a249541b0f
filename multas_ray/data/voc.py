"""Read Pascal VOC: a VOCdevkit folder with JPEGImages, Annotations, SegmentationClass and ImageSets."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeXml
from PIL import Image

from multas_ray.config import Task
from multas_ray.data.row import Reject, Row, attempt, decoding, image_size, read_image_file
from multas_ray.data.schema import IGNORE
from multas_ray.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of VOC's mask values 1..20."""


def choose_classes(names: Sequence[str] | None) -> list[str]:
    """The classes to keep, all 20 by default.

    Raises:
        UserError: a name is not VOC's, or stands twice.
    """
    if names is None:
        return list(CLASSES)
    unknown = [name for name in names if name not in CLASSES]
    if unknown:
        raise UserError(f"--classes: VOC has no class {', '.join(map(repr, unknown))}; allowed: {', '.join(CLASSES)}")
    if len(set(names)) != len(names):
        raise UserError(f"--classes {','.join(names)}: a class stands twice")
    return list(names)


def read_split(root: Path, name: str) -> list[str]:
    """The image ids of ImageSets/<folder>/<split>.txt, where name is `<folder>/<split>`.

    Raises:
        UserError: there is no such file.
    """
    sets = root / "ImageSets"
    try:
        lines = (sets / f"{name}.txt").read_text().splitlines()
    except OSError:
        known = sorted(str(file.relative_to(sets).with_suffix("")) for file in sets.glob("*/*.txt"))
        found = f"there are {', '.join(known)}" if known else f"{sets} holds no split"
        raise UserError(f"no VOC split '{name}': {found}") from None
    # Lists of single classes have a second column, which says whether the class is present.
    return [line.split()[0] for line in lines if line.strip()]


def read_rows(
    root: Path, annotated: Iterable[tuple[str, Sequence[Task]]], classes: Sequence[str]
) -> Iterator[Row | Reject]:
    """Read images with the annotation of their tasks.

    Args:
        root: the VOC2012 folder.
        annotated: image id and the tasks it is annotated for.
        classes: those kept. Boxes of others are dropped, their pixels become 255.
    """
    for image_id, tasks in annotated:
        yield attempt(image_id, partial(_read_row, root, image_id, tasks, classes))


def _read_row(root: Path, image_id: str, tasks: Sequence[Task], classes: Sequence[str]) -> Row:
    data = read_image_file(root / "JPEGImages" / f"{image_id}.jpg")
    row = Row(image_id, data, *image_size(data), has_det="det" in tasks, has_seg="seg" in tasks)
    if row.has_det:
        xml = _parse(root / "Annotations" / f"{image_id}.xml")
        row.height, row.width = _size(xml)
        row.boxes, row.labels, row.difficult = _objects(xml, classes)
    if row.has_seg:
        row.mask = _read_mask(root / "SegmentationClass" / f"{image_id}.png", classes)
    return row


def _parse(path: Path) -> Element:
    try:
        return SafeXml.fromstring(path.read_bytes())
    except OSError as error:
        raise Reject("missing annotation", f"{path.name}: {error.strerror}") from None
    except DefusedXmlException as error:
        raise Reject("unsafe XML", f"{path.name}: {type(error).__name__}") from None
    except (ParseError, ValueError, LookupError) as error:  # the latter two: an encoding that does not fit or exist
        raise Reject("broken XML", f"{path.name}: {error}") from None


def _size(xml: Element) -> tuple[int, int]:
    try:
        return int(xml.findtext("size/height", "")), int(xml.findtext("size/width", ""))
    except ValueError:
        raise Reject("XML without a size") from None


def _objects(xml: Element, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4), labels (N,) and difficult flags (N,) of the objects whose class is kept."""
    boxes, labels, difficult = [], [], []
    for item in xml.findall("object"):
        name = item.findtext("name", "").strip()
        if name not in CLASSES:
            raise Reject("unknown class", f"object '{name}'")
        try:
            x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            raise Reject("broken box", f"of a {name}: four numbers are needed") from None
        if name in classes:
            # Corners are 1-based and inclusive: pixel 1 covers 0..1.
            boxes.append((x1 - 1, y1 - 1, x2, y2))
            labels.append(classes.index(name))
            difficult.append(item.findtext("difficult", "0").strip() == "1")
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32), np.array(difficult, bool)


def _read_mask(path: Path, classes: Sequence[str]) -> np.ndarray:
    """(H, W) uint8: 0 background, 1.. the kept classes, 255 for others and for VOC's void."""
    if not path.is_file():
        raise Reject("missing mask", path.name)
    with decoding("broken mask"), Image.open(path) as image:
        values = np.asarray(image)
    if image.mode not in ("P", "L"):
        raise Reject("broken mask", f"{path.name}: class ids are needed (a palette PNG), found mode {image.mode}")
    found = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    unknown = [int(value) for value in found if value > len(CLASSES) and value != IGNORE]
    if unknown:
        raise Reject("unknown class", f"mask values {unknown}")
    remap = np.full(256, IGNORE, np.uint8)
    remap[0] = 0
    for index, name in enumerate(classes, start=1):
        remap[1 + CLASSES.index(name)] = index
    return remap[values]
