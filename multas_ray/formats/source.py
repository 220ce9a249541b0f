"""The seam of a data format: its options, and the source that it reads with them.

The module of a format has a docstring, whose first line is the help of `prepare <format>`, a class `Options`, and a
function `read(options: Options) -> Source`. Both are imported wherever a command line is parsed: torch, and what
imports it, is left to the time when rows are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from multas_ray.config import Task
    from multas_ray.data.reject import Reject
    from multas_ray.data.row import Row

Item = TypeVar("Item")


class Options(BaseModel):
    """The options of a format. Each field is a flag of `prepare <format>` (see `add_flags`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Split(Generic[Item]):
    """The images of a split, listed and not yet read."""

    items: Sequence[Item]
    """One entry an image, in the order in which rows are stored. It holds all that only this image needs."""
    read: "Callable[[Item], Row | Reject | None]"
    """The row of an item, the reason why it has none, or None where the image is left out. It depends on the item
    alone and can be pickled, so that any process may read any item."""


@dataclass(frozen=True)
class Source:
    """Images with their annotation, from which a data set is prepared."""

    name: str
    """The data set's name, unless its user gives another."""
    classes: "Mapping[Task, Sequence[str]]"
    """The classes of each task: index = label of a box, or value of a pixel (`background` first, if there is one)."""
    splits: Mapping[str, Split[Any]]
    about: str = ""
    """Where the images come from."""
    remarks: Sequence[str] = ()
    """Lines for the user on the source as a whole."""


MOST_CLASSES = 254
"""Largest number of objects' classes in masks: 0 is background and 255 is ignored."""


def with_background(classes: Sequence[str]) -> "dict[Task, Sequence[str]]":
    """The classes of both tasks where boxes and masks are of the same objects; more than masks hold: of boxes alone."""
    return {"det": classes, "seg": ["background", *classes] if len(classes) <= MOST_CLASSES else []}
