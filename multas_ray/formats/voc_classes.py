"""The classes of a folder in VOC's layout.

They are those of Roboflow's table or of CVAT's labelmap.txt, those that are named, VOC's, or the XML's.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from multas_ray.data.reject import Reject
from multas_ray.errors import UserError, quoted
from multas_ray.formats.class_maps import Colour, MaskClasses, voc_colours
from multas_ray.formats.voc_folder import CLASS_TABLE, LABEL_MAP, VocFolder, VocImage, object_name
from multas_ray.tasks.segmentation.rows import IGNORE

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""VOC's, in the order of its mask values 1..20."""


def choose_classes(
    folder: VocFolder, images: Sequence[VocImage], names: Sequence[str] | None, remarks: list[str]
) -> MaskClasses:
    """The classes of the images' annotation, and those of them that the data set has.

    They are those of Roboflow's table or of labelmap.txt; where there is neither, VOC's, if no other is named; else
    `names`, in the order of their mask values, or, where there are no masks, those that the XML names, in alphabetical
    order.

    Args:
        folder: that holds the images' annotation.
        images: of all splits.
        names: the classes of the data set; None: all.
        remarks: for the user, added to.

    Raises:
        UserError: a name is of no class, or stands twice; a list of classes is broken; or it cannot be known what
            masks hold.
    """
    if names is not None and len(set(names)) != len(names):
        raise UserError(f"--classes {','.join(names)}: a class stands twice")
    if folder.tables:
        known = _read_tables(folder)
        _check_known(names, known, f"{CLASS_TABLE} has")
        return MaskClasses(known, list(names or known), {})
    if folder.label_map is not None:
        known, colours = _read_label_map(folder.label_map, folder.root / LABEL_MAP)
        if not _is_of_voc(known, colours):
            _check_known(names, known, f"{LABEL_MAP} has")
            return MaskClasses(known, list(names or known), colours)
    if names is not None and set(names) <= set(CLASSES):
        return MaskClasses(list(CLASSES), list(names), voc_colours(len(CLASSES)))
    # All XML is read for them, which takes 0.2 ms a file.
    counts = _count_names(folder, images)
    masks = any("seg" in image.tasks for image in images)
    if names is not None:
        if not masks:
            _check_known(names, [*counts, *CLASSES], "the files have")
        return MaskClasses(list(names), list(names), voc_colours(len(names)))
    if not _other_than(CLASSES, counts):
        return MaskClasses(list(CLASSES), list(CLASSES), voc_colours(len(CLASSES)))
    if masks:
        others = ", ".join(f"{quoted(name)} ({counts[name]})" for name in _other_than(CLASSES, counts)[:10])
        raise UserError(
            f"{folder.root}: objects of classes that are not VOC's: {others}; give all classes with --classes, in "
            f"the order of their values in masks from 1 on, or a {LABEL_MAP}"
        )
    named = sorted(_spellings(counts).values())
    remarks.append(f"classes taken from the XML: {', '.join(named)}")
    return MaskClasses(named, named, {})


def _count_names(folder: VocFolder, images: Iterable[VocImage]) -> Counter[str]:
    """Number of objects by the class that the images' XML names."""
    names: Counter[str] = Counter()
    for image in images:
        if "det" in image.tasks:
            try:
                names.update(filter(None, map(object_name, folder.read_xml(image.image_id).findall("object"))))
            except Reject:
                continue  # reported where the image is read
    return names


def _read_tables(folder: VocFolder) -> list[str]:
    """Classes in the order of their mask values from 1 on, which is the same in all tables of a folder."""
    tables = {name: _read_table(text, folder.root / name) for name, text in folder.tables.items()}
    (first, known), *others = tables.items()
    for name, listed in others:
        if listed != known:
            raise UserError(
                f"{folder.root / name}: not the same as {folder.root / first}: masks need one list of classes"
            )
    return known


def _read_table(text: str, path: Path) -> list[str]:
    """Classes of Roboflow's table, in the order of their mask values from 1 on."""
    names: list[str] = []
    try:
        rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    except csv.Error as error:
        raise UserError(f"{path}: no table ({error})") from None
    for row in rows[1:]:
        value, name = row[0].strip(), ",".join(row[1:]).strip()
        expected = str(len(names))
        if value != expected or not name or (value == "0") != (name.casefold() == "background") or name in names:
            raise UserError(
                f"{path}: {quoted(', '.join(row))} in place of value {expected}: after a heading, lines are a value "
                "and its class, from `0, background` on, each value and class once"
            )
        names.append(name)
    if len(names) < 2 or len(names) > IGNORE:
        raise UserError(f"{path}: {len(names)} values, and masks hold background and 1 to {IGNORE - 1} classes")
    return names[1:]


def _read_label_map(text: str, path: Path) -> tuple[list[str], dict[Colour, int]]:
    """Classes in their order, and the value of each colour."""
    names: list[str] = []
    colours: dict[Colour, int] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = line.split(":")
        try:
            red, green, blue = (int(part) for part in rest[0].split(","))
        except (IndexError, ValueError):
            raise UserError(f"{path}: {quoted(line)}: write a class as name:red,green,blue::") from None
        if name.casefold() == "background":
            colours[red, green, blue] = 0
        elif name.casefold() in ("void", "ignore", "ignored"):
            colours[red, green, blue] = IGNORE
        else:
            names.append(name)
            colours[red, green, blue] = len(names)
    if len(set(names)) != len(names) or len(colours) < len(names) or len(names) > IGNORE - 1:
        raise UserError(f"{path}: a class or a colour stands twice, or there are more than {IGNORE - 1} classes")
    colours.setdefault((0, 0, 0), 0)
    return names, colours


def _is_of_voc(names: Sequence[str], colours: Mapping[Colour, int]) -> bool:
    """Whether a list of classes and colours says nothing else than VOC does, of some or all of its classes."""
    voc = voc_colours(len(CLASSES))
    return all(
        colour in voc and (CLASSES[voc[colour] - 1] == names[value - 1] if 0 < value < IGNORE else voc[colour] == value)
        for colour, value in colours.items()
    )


def _check_known(names: Sequence[str] | None, known: Sequence[str], have: str) -> None:
    folded = {name.casefold() for name in known}
    unknown = [name for name in names or () if name.casefold() not in folded]
    if unknown:
        raise UserError(
            f"--classes: no class {', '.join(map(quoted, unknown))}; {have} {', '.join(dict.fromkeys(known))}"
        )


def _other_than(known: Sequence[str], counts: Counter[str]) -> list[str]:
    """The names of no known class, the most frequent first."""
    folded = {name.casefold() for name in known}
    return [name for name, _ in counts.most_common() if name.casefold() not in folded]


def _spellings(counts: Counter[str]) -> dict[str, str]:
    """Case-folded name -> its most frequent spelling."""
    spellings: dict[str, str] = {}
    for name, _ in counts.most_common():
        spellings.setdefault(name.casefold(), name)
    return spellings
