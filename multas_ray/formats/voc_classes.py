"""The classes of a folder in VOC's layout: VOC's, those of CVAT's labelmap.txt, those that are named, or the XML's."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from multas_ray.data.reject import Reject
from multas_ray.documents import decode_text
from multas_ray.errors import UserError, quoted
from multas_ray.formats.class_maps import ClassMap, Colour, voc_colours
from multas_ray.formats.voc_folder import VocFolder, VocImage, object_name
from multas_ray.tasks.segmentation.rows import IGNORE

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""VOC's, in the order of its mask values 1..20."""
LABEL_MAP = "labelmap.txt"
"""CVAT's list of classes and their colours, beside JPEGImages."""


def choose_classes(
    folder: VocFolder, images: Sequence[VocImage], names: Sequence[str] | None, remarks: list[str]
) -> ClassMap:
    """The classes of the images' annotation, and those of them that the data set has.

    They are those of labelmap.txt; where there is none, VOC's, if no other is named; else `names`, in the order of
    their mask values, or, where there are no masks, those that the XML names, in alphabetical order.

    Args:
        folder: that holds the images' annotation.
        images: of all splits.
        names: the classes of the data set; None: all.
        remarks: for the user, added to.

    Raises:
        UserError: a name is of no class, or stands twice; or it cannot be known what masks hold.
    """
    if names is not None and len(set(names)) != len(names):
        raise UserError(f"--classes {','.join(names)}: a class stands twice")
    counts = _count_names(folder, images)
    masks = any("seg" in image.tasks for image in images)
    if (folder.root / LABEL_MAP).is_file():
        known, colours = _read_label_map(folder.root / LABEL_MAP)
        if not _is_of_voc(known, colours):
            _check_known(names, known, f"{LABEL_MAP} has")
            return ClassMap(known, list(names or known), colours)
    if set(names or ()) <= set(CLASSES) and (names or not _other_than(CLASSES, counts)):
        return ClassMap(list(CLASSES), list(names or CLASSES), voc_colours(len(CLASSES)))
    if names is not None:
        if not masks:
            _check_known(names, [*counts, *CLASSES], "the files have")
        return ClassMap(list(names), list(names), voc_colours(len(names)))
    if masks:
        others = ", ".join(f"{quoted(name)} ({counts[name]})" for name in _other_than(CLASSES, counts)[:10])
        raise UserError(
            f"{folder.root}: objects of classes that are not VOC's: {others}; give all classes with --classes, in "
            f"the order of their values in masks from 1 on, or a {LABEL_MAP}"
        )
    named = sorted(_spellings(counts).values())
    remarks.append(f"classes taken from the XML: {', '.join(named)}")
    return ClassMap(named, named, {})


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


def _read_label_map(path: Path) -> tuple[list[str], dict[Colour, int]]:
    """Classes in their order, and the value of each colour."""
    names: list[str] = []
    colours: dict[Colour, int] = {}
    for line in decode_text(path.read_bytes(), path).splitlines():
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
