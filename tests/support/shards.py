"""Data sets by hand: tables of small rows, changed as a test likes, in one shard."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from multas_ray.data.schema import SCHEMA

HEIGHT, WIDTH = 20, 30
INFO = {
    "name": "by hand",
    "det_classes": ["cat", "dog"],
    "seg_classes": ["background", "cat", "dog"],
    "splits": {"train": {}},
}


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row annotated for both tasks, with two boxes."""
    random = np.random.default_rng(number)
    return {
        "image_id": f"image{number}",
        "image": encoded(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), "JPEG" if number % 2 else "PNG"),
        "height": HEIGHT,
        "width": WIDTH,
        "has_det": True,
        "has_seg": True,
        "boxes": [[1.0, 2.0, 10.0, 12.0], [0.0, 0.0, WIDTH, HEIGHT]],
        "labels": [1, number % 2],
        "difficult": [False, True],
        "mask": encoded(random.choice(np.array([0, 1, 2, 255], np.uint8), (HEIGHT, WIDTH))),
        "det_unlabelled": [],
        "seg_unlabelled": [],
    } | changes


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows in the contract's types, whatever they hold."""
    return pa.Table.from_pylist(list(rows), pa.schema([field.with_nullable(True) for field in SCHEMA]))


def changed(table: pa.Table, name: str, kind: pa.DataType | None) -> pa.Table:
    """The table with a column of another type, or without it."""
    place = table.column_names.index(name)
    if kind is None:
        return table.remove_column(place)
    return table.set_column(place, name, pa.array(table[name].to_pylist(), kind))


def write_set(folder: Path, table: pa.Table | bytes, **options: Any) -> str:
    """A data set of one split, `train`, in one shard.

    Args:
        table: or the bytes of the shard.
        options: of `pq.write_table`.
    """
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(INFO))
    file = folder / "train" / "part.parquet"
    if isinstance(table, bytes):
        file.write_bytes(table)
    else:
        pq.write_table(table, file, **options)
    return str(folder)


def damage_rows(data: Path, split: str, *damage: tuple[int, str, object]) -> list[str]:
    """Put something else into a column of some rows of the first shard of a split; their ids."""
    file = min((data / split).glob("*.parquet"))
    table = pq.read_table(file)
    rows = table.to_pylist()
    for row, column, content in damage:
        rows[row][column] = content
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file, row_group_size=8)
    return [rows[row]["image_id"] for row, _, _ in damage]
