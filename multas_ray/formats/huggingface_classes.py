"""Classes of Hugging Face's data sets: what a category's number, or a mask's value, is called."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from multas_ray.documents import parse_json, read_json, read_text
from multas_ray.errors import UserError, quoted
from multas_ray.formats.flags import FromText, names
from multas_ray.formats.masks_classes import BACKGROUND, IGNORED
from multas_ray.tasks.segmentation.rows import IGNORE

METADATA = b"huggingface"
"""Key of a Parquet file's metadata under which `datasets` describes its columns, in JSON."""
NO_CLASS = -1
"""Label of an object whose class is not kept."""


def class_names(text: str) -> tuple[str, ...]:
    """Comma-separated names, or those of a file.

    A .txt file has a name a line; a .json file a list of names, or names by their numbers from 0 on, as in the
    `id2label` of a model.

    Raises:
        UserError: the file cannot be read.
    """
    if text.endswith(".txt"):
        found: Any = [line.strip() for line in read_text(text).splitlines() if line.strip()]
    elif text.endswith(".json"):
        found = read_json(text)
        if isinstance(found, dict):
            found = [found.get(str(number)) for number in range(len(found))]
    else:
        return names(text)
    if not isinstance(found, list) or not found or not all(isinstance(name, str) and name for name in found):
        raise argparse.ArgumentTypeError(f"{text}: names are needed, or in JSON names by the numbers 0, 1, … of all")
    return tuple(found)


ClassNames = Annotated[tuple[str, ...], FromText(class_names)]


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes of a task, and what the files' numbers are of them."""

    names: tuple[str, ...]
    """The classes of the data set."""
    numbers: np.ndarray
    """(N,) int64: for the number n in a file the index in `names`, `NO_CLASS` or, of pixels, `IGNORE`."""


def choose_det_classes(
    named: Sequence[str] | None, chosen: Sequence[str] | None, column: str, remarks: list[str]
) -> Classes:
    """The classes of objects. One that is called background is none, and its boxes are left out.

    Args:
        named: by number, as the files name them; None where they do not.
        chosen: the classes that are kept, or, where the files name none, all of them by number.
        column: of the objects.
        remarks: for the user, added to.

    Raises:
        UserError: nobody names the classes, or a chosen one is none of them.
    """
    known = named or chosen
    if not known:
        raise UserError(
            f"the files do not say how the categories in the column {quoted(column)} are called: name them with "
            "--classes in the order of their numbers, from 0 on (a,b,c, or a file with a name a line)"
        )
    kept = tuple(name for name in chosen or known if name.casefold() != BACKGROUND)
    if len(kept) < len(chosen or known):
        remarks.append(f"class 'background' of the column {quoted(column)} left out: it is no object's")
    unknown = [name for name in kept if name not in known]
    if unknown or len(set(kept)) != len(kept):
        problem = f"no class {', '.join(map(quoted, unknown))}" if unknown else "a class stands twice"
        raise UserError(f"--classes: {problem}; the files have {', '.join(map(quoted, known))}")
    return Classes(kept, np.array([kept.index(name) if name in kept else NO_CLASS for name in known]))


def choose_seg_classes(chosen: Sequence[str] | None, column: str, *, from_one: bool) -> Classes:
    """The classes of pixels, the background first, if there is one.

    Args:
        chosen: all of them, in the order of the masks' values. Where a name says that it is no class, as `void` does,
            its pixels are ignored.
        column: of the masks.
        from_one: whether the first class is 1, and 0 is ignored; else it is 0.

    Raises:
        UserError: nobody names the classes, or there are too many.
    """
    if not chosen:
        raise UserError(
            f"the files do not say what the values of the masks in the column {quoted(column)} are called: name them "
            "with --mask-classes in the order of the values, from 0 on (a,b,c, or a file with a name a line), with "
            "--reduce-zero-label from 1 on; --objects and the name of their column reads no masks"
        )
    special = (*IGNORED, BACKGROUND)
    values = [name.casefold() if name.casefold() in special else name for name in chosen]
    values = [IGNORED[0], *values] if from_one else values
    if len(values) > IGNORE:
        raise UserError(f"{len(chosen)} classes of masks: their values are 0 to {IGNORE - 1}, and 255 is ignored")
    kept = dict.fromkeys(name for name in values if name not in IGNORED)
    names = sorted(kept, key=lambda name: name != BACKGROUND)
    return Classes(tuple(names), np.array([names.index(name) if name in kept else IGNORE for name in values]))


def stored_names(metadata: Mapping[bytes, bytes] | None, objects: str, category: str, file: str) -> list[str] | None:
    """The names of the categories that a Parquet file's metadata have.

    Args:
        metadata: of the file.
        objects: column of the objects.
        category: its field of the categories.
        file: its name in messages.

    Returns:
        Names by number; None where the metadata have none.

    Raises:
        UserError: the metadata are not JSON.
    """
    text = (metadata or {}).get(METADATA, b"{}").decode(errors="replace")
    tree = parse_json(text, f"{file}: its metadata of the key huggingface")
    for key in ("info", "features", objects):
        tree = tree.get(key) if isinstance(tree, dict) else None
    objects_feature = _element(tree)
    feature = _element(objects_feature.get(category)) if isinstance(objects_feature, dict) else None
    found = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(name, str) and name for name in found):
        return None
    return found


def _element(feature: Any) -> Any:
    """What a feature is a list of, in any of the ways in which versions of `datasets` write that; else itself."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and isinstance(feature.get("_type"), str) and "feature" in feature:
            feature = feature["feature"]
        else:
            return feature
