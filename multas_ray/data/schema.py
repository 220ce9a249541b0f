"""Format of a data set on disk: a folder with `dataset.json` and a folder of Parquet files for each split."""

from collections import Counter
from typing import Annotated, Any

import pyarrow as pa
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from multas_ray.config import TASK_MASKS, TASKS, Task, TaskMask
from multas_ray.documents import read_model
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.storage import StoragePath
from multas_ray.tasks import PARTS
from multas_ray.tasks.segmentation.rows import IGNORE

SCHEMA_VERSION = 2
READ_VERSIONS = (1, 2)
"""Versions that are read: the first has no class masks."""

ROW_FIELDS = (
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("image", pa.binary(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    *(pa.field(f"has_{task}", pa.bool_(), nullable=False) for task in TASKS),
)
"""Columns that every row has; those of an annotation are in the task's rows.py."""
SCHEMA = pa.schema([*ROW_FIELDS, *(field for task in TASKS for field in PARTS[task].rows.FIELDS)])
"""Columns of a Parquet file (docs/data.md)."""
MAY_BE_MISSING = tuple(name for task in TASKS for name in PARTS[task].rows.MAY_BE_MISSING)
"""Columns that a file need not have."""


def tasks_of(mask: TaskMask) -> set[Task]:
    """The tasks that a row of a task mask is annotated for."""
    return {task for place, task in enumerate(TASKS) if TASK_MASKS.index(mask) >> place & 1}


def _distinct(names: list[str]) -> list[str]:
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise ValueError(f"{quoted(name)} stands there {times} times")
    return names


def _folder(name: str) -> str:
    if name.startswith(".") or any(mark in name for mark in "/\\\0"):
        raise ValueError("a plain folder name is needed")
    return name


ClassNames = Annotated[list[Annotated[str, Field(min_length=1)]], AfterValidator(_distinct)]
Split = Annotated[str, Field(min_length=1), AfterValidator(_folder)]
Rows = Annotated[int, Field(ge=0)]


class DatasetInfo(BaseModel):
    """Content of `dataset.json`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    schema_version: int = SCHEMA_VERSION
    det_classes: ClassNames
    """Object classes; the index is the label."""
    seg_classes: Annotated[ClassNames, Field(max_length=IGNORE)]
    """Pixel classes, `background` first if there is one; the index is the mask value, below `IGNORE`."""
    splits: dict[Split, dict[TaskMask, Rows]] = Field(default_factory=dict)
    """Number of rows of each split by task mask."""
    folders: dict[Split, Annotated[list[Split], Field(min_length=1)]] = Field(default_factory=dict)
    """Folders of the files of a split that are not all in the folder of its name: see `folders_of`."""
    source: str = ""
    """Origin of the images and annotations."""
    command: str = ""
    """Command line that made the data set."""

    @property
    def classes(self) -> dict[Task, list[str]]:
        """Names of each task's classes."""
        return {"det": self.det_classes, "seg": self.seg_classes}

    def folders_of(self, split: str) -> list[str]:
        """Return the folders of a split's files, in the order of its rows.

        It is the one of the split's name, except where rows were replaced or added in a store that renames no folders.
        """
        return self.folders.get(split, [split])

    @model_serializer(mode="wrap")
    def _without_what_few_need(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = serialize(self)
        return tree if self.folders else {key: value for key, value in tree.items() if key != "folders"}

    @model_validator(mode="before")
    @classmethod
    def _version(cls, tree: Any) -> Any:
        version = tree.get("schema_version", SCHEMA_VERSION) if isinstance(tree, dict) else SCHEMA_VERSION
        if version not in READ_VERSIONS:
            shown = " and ".join(map(str, READ_VERSIONS))
            raise ValueError(f"schema_version {quoted(version)}, this version of multas-ray reads {shown}")
        return tree


def read_info(path: str) -> DatasetInfo:
    """Read and check `dataset.json` of a data set folder.

    Raises:
        UserError: the file is missing, not JSON, of another schema version, or has wrong fields.
    """
    file = StoragePath(path) / "dataset.json"
    try:
        exists = file.exists()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    if not exists:
        raise UserError(f"{path}: no data set here (dataset.json is missing); make one with jobs/prepare.py")
    return read_model(file, DatasetInfo)
