"""Rows of Hugging Face's Parquet files, read a row group at a time."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from multas_ray.data.pillow import opened, upright_size
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.formats.files import Folder
from multas_ray.formats.huggingface_classes import NO_CLASS, Classes
from multas_ray.formats.huggingface_columns import Columns
from multas_ray.formats.huggingface_files import RowGroup
from multas_ray.parquet import read_parquet
from multas_ray.storage import StoragePath
from multas_ray.tasks.segmentation.rows import IGNORE


class Objects(NamedTuple):
    """The objects of an image, as the file has them."""

    boxes: np.ndarray
    """(N, 4) float64."""
    categories: np.ndarray
    """(N,) int64."""
    crowd: np.ndarray
    """(N,) bool."""


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of a split by their numbers."""

    folder: Folder
    groups: tuple[RowGroup, ...]
    """Row groups of the split, in their order."""
    columns: Columns
    det: Classes | None
    """Of the objects; None where none are read."""
    seg: Classes | None
    """Of the pixels; None where no masks are read."""
    boxes: Literal["xywh", "xyxy"]
    """What the four numbers of a box are."""

    def __len__(self) -> int:
        """The number of rows."""
        return self._ends[-1]

    def read(self, number: int) -> Row | Reject:
        """The row of this number in the split, or the reason why there is none."""
        place = bisect_right(self._ends, number)
        group = self.groups[place]
        offset = number - self._ends[place] + group.rows
        # Row numbers are there without a value having been read, and no part of the file's name is lost.
        image_id = f"{group.file.removesuffix('.parquet')}/{group.first + offset}"
        return attempt(image_id, partial(self._read, group, offset, image_id))

    def first_objects(self, most: int) -> Iterator[tuple[Objects, tuple[int, int]]]:
        """Objects of the first rows that have them, and the height and width of their images in pixels.

        Args:
            most: number of rows that are looked at, of the first row group.
        """
        group = self.groups[0]
        for offset in range(min(most, group.rows)):
            try:
                values = self._values(group, offset)
                objects = self._objects(values)
                if objects is not None and len(objects.boxes):
                    yield objects, upright_size(self._image(values, self.columns.image))[:2]
            except Reject:
                continue  # reported where the row is read

    @cached_property
    def _ends(self) -> list[int]:
        """Numbers of the rows that follow each row group."""
        return list(accumulate(group.rows for group in self.groups))

    def _read(self, group: RowGroup, offset: int, image_id: str) -> Row:
        values = self._values(group, offset)
        row = Row(_text(values.get("image_id")) or image_id, self._image(values, self.columns.image), None, None)
        height, width = (values[name].as_py() if name in values else None for name in ("height", "width"))
        if height and width and height > 0 and width > 0:
            row.height, row.width = height, width
        self._add_boxes(row, values)
        self._add_mask(row, values)
        return row

    def _values(self, group: RowGroup, offset: int) -> dict[str, pa.Scalar]:
        """The values of a row by column."""
        table = _read_group(self.folder, group.file, group.number, self.columns.schema)
        if isinstance(table, Reject):
            raise Reject(table.reason, table.detail)
        if offset >= len(table):
            raise Reject("broken file", f"{group.file}: row group {group.number} has {len(table)} rows by now")
        return {name: table[name][offset] for name in self.columns.schema.names}

    def _image(self, values: dict[str, pa.Scalar], column: str) -> bytes:
        """The bytes of an image, or of the file that it names."""
        value = values[column]
        data = value["bytes"].as_py() if value.is_valid else None
        if data is not None:
            return bytes(data)
        path = _text(value["path"]) if value.is_valid and "path" in self.columns.fields(column) else None
        if not path:
            raise Reject("missing image", f"{quoted(column)} has neither bytes nor a path")
        return self.folder.read(path)

    def _objects(self, values: dict[str, pa.Scalar]) -> Objects | None:
        """The objects of a row; None where it says nothing of them."""
        column = self.columns.objects or ""
        if not values[column].is_valid:
            return None
        fields = _lists(values[column], self.columns.fields(column))
        boxes, categories = fields["bbox"], fields[self.columns.category]
        if boxes is None and categories is None:
            return None
        crowd = fields.get("iscrowd") or [False] * len(categories or ())
        try:
            objects = Objects(
                np.array(boxes, np.float64).reshape(len(boxes), 4),
                np.array(categories, np.int64).reshape(-1),
                np.array(crowd, bool).reshape(-1),
            )
        except (TypeError, ValueError, OverflowError):
            raise Reject("broken annotation", f"{quoted(column)}: each needs four numbers and a category") from None
        lengths = [len(each) for each in objects]
        if len(set(lengths)) > 1:
            text = "{} bbox, {} categories, {} iscrowd".format(*lengths)
            raise Reject("lists of different lengths", f"{quoted(column)}: {text}")
        return objects

    def _add_boxes(self, row: Row, values: dict[str, pa.Scalar]) -> None:
        """Annotate a row with the objects of the classes that are kept."""
        if self.det is None:
            return
        objects = self._objects(values)
        if objects is None:
            row.notes[f"images not annotated for detection: {quoted(self.columns.objects)} is null"] += 1
            return
        known = len(self.det.numbers)
        unknown = objects.categories[(objects.categories < 0) | (objects.categories >= known)]
        if len(unknown):
            raise Reject("unknown class", f"category {unknown[0]}, {known} are known, from 0 on")
        labels = self.det.numbers[objects.categories]
        boxes = objects.boxes.copy()
        if self.boxes == "xywh":
            boxes[:, 2:] += boxes[:, :2]
        kept = labels != NO_CLASS
        with np.errstate(over="ignore"):  # numbers that are too large become infinite, which is rejected
            row.boxes = boxes[kept].astype(np.float32)
        row.has_det, row.labels, row.difficult = True, labels[kept].astype(np.int32), objects.crowd[kept]

    def _add_mask(self, row: Row, values: dict[str, pa.Scalar]) -> None:
        """Annotate a row with its mask."""
        if self.seg is None or self.columns.masks is None:
            return
        if not values[self.columns.masks].is_valid:
            row.notes[f"images not annotated for segmentation: {quoted(self.columns.masks)} is null"] += 1
            return
        found = _class_ids(self._image(values, self.columns.masks))
        known = len(self.seg.numbers)
        targets = np.full(IGNORE + 1, IGNORE, np.uint8)
        targets[:known] = self.seg.numbers
        present = np.flatnonzero(np.bincount(found.ravel()))
        unknown = present[(present >= known) & (present != IGNORE)]
        if len(unknown):
            raise Reject(
                "unknown class",
                f"mask value {unknown[0]}, {known} are known, from 0 on: name all with --mask-classes, or, where 0 is "
                "no class, say --reduce-zero-label",
            )
        row.has_seg, row.mask = True, targets[found]


@lru_cache(maxsize=1)
def _read_group(folder: Folder, name: str, group: int, columns: pa.Schema) -> pa.Table | Reject:
    """The columns of a row group, or why they cannot be read. Rows are read in their order: the last one is kept."""
    try:
        path = StoragePath(folder.check(name))
        return read_parquet(path, columns, lambda parquet: parquet.read_row_group(group, columns.names), groups=[group])
    except Reject as reject:
        return reject
    except (UserError, OSError) as error:
        return Reject("broken file", first_line(error))


def _lists(value: pa.Scalar, names: Sequence[str]) -> dict[str, Any]:
    """Fields of a row's objects, each a list, of a struct of lists or a list of structs."""
    if isinstance(value, pa.StructScalar):
        return {name: value[name].as_py() for name in names}
    return {name: value.values.field(name).to_pylist() for name in names}


def _text(value: pa.Scalar | None) -> str | None:
    """A name, or a number as one."""
    try:
        return None if value is None or not value.is_valid else str(value.as_py())
    except UnicodeDecodeError:
        raise Reject("broken row", "a name that is not UTF-8") from None


def _class_ids(data: bytes) -> np.ndarray:
    """Decode the values of a mask: (H, W), of 8 or 16 bits."""
    with opened(data, "broken mask") as image:
        if image.mode not in ("P", "L", "1") and not image.mode.startswith("I;16"):
            raise Reject("broken mask", f"class ids are needed (grey, or with a palette), found mode {image.mode}")
        values = np.asarray(image)
        return values.astype(np.uint8) if image.mode == "1" else values
