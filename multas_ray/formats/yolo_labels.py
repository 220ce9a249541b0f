"""Label files of YOLO: a line an object, its class and its box or outline in fractions of the image's sides."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from multas_ray.data.reject import Reject
from multas_ray.documents import decode_text
from multas_ray.errors import UserError
from multas_ray.formats.files import Folder
from multas_ray.formats.outlines import number

LARGEST_LABELS = 2**24
"""Largest size of a label file in bytes."""
TOLERANCE = 0.01
"""By how much a coordinate may be below 0 or above 1: it is clipped."""
BOX_COLUMNS = 5
"""class cx cy w h; an outline has a class and x y of three points or more."""


@dataclass(frozen=True)
class YoloObject:
    """A line of a label file."""

    line: int
    """From 1 on."""
    label: int | None
    """Index of its class; None: of a class that is not chosen."""
    box: np.ndarray
    """(4,) x1 y1 x2 y2 in fractions of the image's width and height."""
    outline: np.ndarray | None
    """(N, 2) x y in fractions, 0..1, N >= 3; None: it has a box only."""


@dataclass(frozen=True)
class Labels:
    """Label files below a folder."""

    files: Folder
    classes: Mapping[int, int | None]
    """Class number -> label; None for classes that are not chosen."""
    keypoint_columns: int = 0
    """Number of columns of keypoints that may follow a box."""
    background: Collection[int] = ()
    """Numbers of classes whose lines are of no object."""

    def read(self, name: str, notes: Counter[str]) -> list[YoloObject]:
        """Read a label file. Of lines that say the same, one is taken.

        Args:
            name: its path below the folder.
            notes: counts of what was left out or clipped, updated.

        Raises:
            Reject: it cannot be read, or a line is no object of a known class in the image.
        """
        try:
            text = decode_text(self.files.read(name, LARGEST_LABELS), name)
        except UserError as error:
            raise Reject("broken annotation", str(error)) from None
        rows: dict[tuple[float, ...], int] = {}
        for line, content in enumerate(text.splitlines(), start=1):
            if words := content.split():
                row = tuple(number(word, f"{name}, line {line}:") for word in words)
                if row[0] in self.background:
                    notes["objects dropped: of the class background"] += 1
                    continue
                notes["objects dropped: another line says the same"] += row in rows
                rows.setdefault(row, line)
        return [self._object(row, line, f"{name}, line {line}", notes) for row, line in rows.items()]

    def _object(self, row: tuple[float, ...], line: int, where: str, notes: Counter[str]) -> YoloObject:
        columns = len(row)
        if self.keypoint_columns and columns == BOX_COLUMNS + self.keypoint_columns:
            notes["objects whose keypoints are left out"] += 1
            row = row[:BOX_COLUMNS]
        elif columns != BOX_COLUMNS and (columns < 7 or columns % 2 == 0):
            raise Reject(
                "broken annotation",
                f"{where}: {columns} columns; a box has {BOX_COLUMNS} (class cx cy w h), an outline a class and x y of "
                "three points or more",
            )
        if row[0] not in self.classes:
            raise Reject("unknown class", f"{where}: class {row[0]:g} of {len(self.classes)}, which begin at 0")
        numbers = np.array(row[1:])
        beyond = numbers[(numbers < -TOLERANCE) | (numbers > 1 + TOLERANCE)]
        if len(beyond):
            raise Reject(
                "coordinates beyond the image",
                f"{where}: {beyond[0]:g}; coordinates are fractions, 0 to 1, of the image's width and height",
            )
        label = self.classes[int(row[0])]
        if len(row) == BOX_COLUMNS:
            cx, cy, w, h = numbers
            return YoloObject(line, label, np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]), None)
        outline = numbers.clip(0, 1).reshape(-1, 2)
        notes["outlines clipped at the image's edge"] += bool((outline.ravel() != numbers).any())
        return YoloObject(line, label, np.concatenate([outline.min(axis=0), outline.max(axis=0)]), outline)
