"""A file of classes: a line each, with the value or the colour that the class has in masks."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from multas_ray.documents import read_text
from multas_ray.errors import UserError, quoted
from multas_ray.formats.class_maps import Colour
from multas_ray.formats.masks_values import MaskClasses
from multas_ray.tasks.segmentation.rows import IGNORE

IGNORED = ("void", "ignore", "ignored", "unlabeled", "unlabelled")
"""Names of what is no class: its pixels become 255."""
BACKGROUND = "background"
HEADINGS = {"name", "class", "class name", "label", "id", "value", "pixel value", "r", "g", "b", "red", "green", "blue"}
"""Words of a table's first line."""
FORM = "write a class as `name`, `name: value` or `name: red,green,blue`, with numbers of 0 to 255"

Number = int | Colour


def read_classes(path: Path) -> MaskClasses:
    """Read a file of classes.

    A line has a name and a value, a name and a colour, or a name alone, whose value is the number of its line; in any
    order, with commas, colons or tabs between them. So have CVAT's labelmap.txt, CamVid's label_colors.txt, Kaggle's
    class_dict.csv and Roboflow's _classes.csv. A name may stand in several lines. The background, if there is one,
    becomes the first class.

    Raises:
        UserError: the file cannot be read, a line is neither, or two lines have the same value or colour.
    """
    lines = [line for line in read_text(path).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and _is_heading(lines[0]):
        del lines[0]
    entries = [_entry(line, place, path) for place, line in enumerate(lines)]
    counts = Counter(number for _, number in entries)
    twice = [number for number, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"{path}: {quoted(twice[0])} stands there twice")
    if len({type(number) for number in counts}) > 1:
        raise UserError(f"{path}: some classes have a value and others a colour; masks are of ids or of colours")
    names = _names(name for name, _ in entries)
    if not 0 < len(names) <= IGNORE:
        raise UserError(f"{path}: {len(names)} classes; masks hold 1 to {IGNORE}")
    index = {name: value for value, name in enumerate(names)} | dict.fromkeys(IGNORED, IGNORE)
    values: dict[int, int] = {}
    colours: dict[Colour, int] = {}
    for name, number in entries:
        if isinstance(number, int):
            values[number] = index[name]
        else:
            colours[number] = index[name]
    return MaskClasses(names, values, colours, str(path))


def _is_heading(line: str) -> bool:
    parts = [part.strip().casefold() for part in re.split("[,:\t]", line)]
    return len(parts) > 1 and set(parts) <= HEADINGS


def _entry(line: str, place: int, path: Path) -> tuple[str, Number]:
    """The name of a line, and its value or colour."""
    # Blanks separate numbers from a name, as in `64 128 64 Animal`; a single number at the end belongs to the name.
    marked = re.sub(r"^\s*((?:\d+\s+)+)", r"\1,", re.sub(r"\s((?:\d+\s+){2}\d+)\s*$", r",\1", line))
    parts = [part.strip() for part in re.split("[,:\t]", marked) if part.strip()]
    names = [part for part in parts if not _is_number(part)]
    numbers = [int(digits) for part in parts if _is_number(part) for digits in part.split()]
    if len(names) != 1 or len(numbers) not in (0, 1, 3) or not all(0 <= number <= IGNORE for number in numbers):
        raise UserError(f"{path}: {quoted(line)}: {FORM}")
    [name] = names
    if name.casefold() in (*IGNORED, BACKGROUND):
        name = name.casefold()
    if len(numbers) == 3:
        red, green, blue = numbers
        return name, (red, green, blue)
    return name, numbers[0] if numbers else place


def _is_number(part: str) -> bool:
    return re.fullmatch(r"\d{1,3}( +\d{1,3})*", part, re.ASCII) is not None


def _names(names: Iterable[str]) -> list[str]:
    """The classes, each once, the background first."""
    distinct = [name for name in dict.fromkeys(names) if name not in IGNORED]
    return sorted(distinct, key=lambda name: name != BACKGROUND)
