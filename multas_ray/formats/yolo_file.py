"""The content of a data.yaml, as Ultralytics and Roboflow write it. What else is in it is neither read nor run."""

from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from multas_ray.documents import read_model, read_yaml
from multas_ray.errors import quoted
from multas_ray.tasks.segmentation.rows import IGNORE

MOST_CLASSES = 100_000
"""Largest number of classes that `nc` may stand for."""


def _listed(value: Any) -> Any:
    """One or several paths, or none, as a list."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _names(value: Any) -> Any:
    """Class names in the order of their numbers."""
    if isinstance(value, dict):
        numbered = {int(number): name for number, name in value.items() if str(number).isdecimal()}
        if len(numbered) < len(value) or sorted(numbered) != list(range(len(value))):
            raise ValueError(f"the numbers of {len(value)} classes are 0 to {len(value) - 1}, each once")
        value = [numbered[number] for number in range(len(value))]
    if not isinstance(value, list):
        raise ValueError("a list of names, or a mapping of numbers to names, is needed")
    for number, name in enumerate(value):
        if not isinstance(name, str | int | float) or name == "":
            raise ValueError(f"class {number} has no name")
    names = [str(name) for name in value]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{quoted(twice)} stands there twice")
    return names


def _mapping(value: Any) -> Any:
    """Values of masks by their raw values; what is ignored is 255."""
    if isinstance(value, dict):
        return {raw: IGNORE if target in (None, "ignore_label") else target for raw, target in value.items()}
    return {} if value is None else value


Paths = Annotated[list[str], BeforeValidator(_listed)]
MaskValue = Annotated[int, Field(ge=0, le=IGNORE)]


class YoloFile(BaseModel):
    """The keys of a data.yaml that are read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: str | None = None
    """Folder of the data set; None: the file's own."""
    train: Paths = []
    val: Paths = []
    valid: Paths = []
    validation: Paths = []
    test: Paths = []
    names: Annotated[list[str], BeforeValidator(_names), Field(min_length=1)]
    """Classes in the order of their numbers; those of `nc` are called class_0 and so on."""
    nc: int | None = Field(None, ge=1, le=MOST_CLASSES)
    kpt_shape: tuple[Annotated[int, Field(ge=1, le=1000)], Annotated[int, Field(ge=2, le=3)]] | None = None
    """Of a data set of poses: number of keypoints, and of the numbers of each."""
    masks_dir: str | None = None
    """Folder of masks, which stands in the place of `images` in the paths of images; None: labels are read."""
    label_mapping: Annotated[dict[int, MaskValue], BeforeValidator(_mapping)] = {}
    """Class number, or 255 for ignored, of values in masks; other values are class numbers."""

    @model_validator(mode="before")
    @classmethod
    def _names_of_nc(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or tree.get("names") is not None:
            return tree
        count = tree.get("nc")
        if not isinstance(count, int) or not 1 <= count <= MOST_CLASSES:
            raise ValueError("names: the classes are needed, or their number as nc")
        return tree | {"names": [f"class_{number}" for number in range(count)]}

    @model_validator(mode="after")
    def _agrees(self) -> "YoloFile":
        if self.nc is not None and self.nc != len(self.names):
            raise ValueError(f"nc is {self.nc}, and names has {len(self.names)} classes")
        if sum(map(bool, (self.val, self.valid, self.validation))) > 1:
            raise ValueError("the validation images stand under several of val, valid and validation")
        return self

    @property
    def splits(self) -> dict[str, list[str]]:
        """The paths of each split that the file has."""
        given = {"train": self.train, "val": self.val or self.valid or self.validation, "test": self.test}
        return {name: paths for name, paths in given.items() if paths}

    @property
    def keypoint_columns(self) -> int:
        """Number of a label row's columns that hold keypoints."""
        return prod(self.kpt_shape or (0,))


def read_yolo_file(path: Path) -> YoloFile:
    """Read a data.yaml.

    Raises:
        UserError: the file cannot be read, is no YAML, or a key has a value that it cannot have.
    """
    return read_model(path, YoloFile, read_yaml)
