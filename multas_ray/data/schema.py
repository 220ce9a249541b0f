"""The one definition of a data set on disk: a folder with `dataset.json` and Parquet shards a split."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multas_ray.errors import UserError
from multas_ray.storage import StoragePath

SCHEMA_VERSION = 1
IGNORE = 255
"""Mask value of a pixel that no loss and no metric looks at."""

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("has_det", pa.bool_(), nullable=False),
        pa.field("has_seg", pa.bool_(), nullable=False),
        pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("difficult", pa.list_(pa.bool_()), nullable=False),
        pa.field("mask", pa.binary(), nullable=True),
    ]
)
"""Columns of a shard (docs/data.md): boxes are x1 y1 x2 y2 in pixels, continuous; labels are 0..C_det-1; `mask` is a
PNG of uint8 class ids, 255 = ignore, null where has_seg is false."""

TaskMask = Literal["det", "seg", "both", "none"]
"""What a row is annotated for."""
TASK_MASKS: tuple[TaskMask, ...] = ("none", "det", "seg", "both")
"""Indexed by has_det + 2 * has_seg."""


class DatasetInfo(BaseModel):
    """`dataset.json`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    schema_version: int = SCHEMA_VERSION
    det_classes: list[str]
    """Object classes; index = label."""
    seg_classes: list[str]
    """Pixel classes, with `background` first if there is one; index = mask value."""
    splits: dict[str, dict[TaskMask, int]] = Field(default_factory=dict)
    """Rows of each split by task mask."""
    source: str = ""
    command: str = ""
    """The command line that made it."""


def read_info(path: str) -> DatasetInfo:
    """Read and check `dataset.json` of a data set folder.

    Raises:
        UserError: it is missing, not JSON, of another schema version, or has wrong fields.
    """
    try:
        raw: Mapping[str, Any] = json.loads((StoragePath(path) / "dataset.json").read_text())
        info = DatasetInfo.model_validate(raw)
    except FileNotFoundError:
        raise UserError(f"{path}: no data set here (dataset.json is missing); make one with jobs/prepare.py") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}/dataset.json: not JSON ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}/dataset.json: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if info.schema_version != SCHEMA_VERSION:
        raise UserError(
            f"{path}/dataset.json: schema_version {info.schema_version}, this version reads {SCHEMA_VERSION}"
        )
    return info
