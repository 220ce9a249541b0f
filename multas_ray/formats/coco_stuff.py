"""Pixel maps beside COCO instances: a PNG for each image, whose values are category ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.errors import UserError
from multas_ray.formats.coco_file import CocoImage, Id, choose_classes
from multas_ray.formats.coco_rows import RowReader
from multas_ray.formats.files import Folder
from multas_ray.formats.pixel_maps import read_numbers, some, translated
from multas_ray.tasks.segmentation.rows import IGNORE

FIRST_STUFF = 92
"""Category id of the first of `STUFF`."""
STUFF = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet",
    "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff",
    "dirt", "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower",
    "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper", "pavement", "pillow",
    "plant-other", "plastic", "platform", "playingfield", "railing", "railroad", "river", "road", "rock", "roof",
    "rug", "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone",
    "straw", "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable", "wall-brick",
    "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other", "waterdrops",
    "window-blind", "window-other", "wood",
)  # fmt: skip
"""COCO-Stuff's names of what is no object, in the order of its category ids."""
OTHER = (183, "other")
"""Id and name of the pixels of all things in the maps of stuff alone."""
STUFF_NAMES = frozenset({*STUFF, OTHER[1], "background"})
"""Classes of pixels that instances files do not list."""
COCO_THINGS = {1: "person", 90: "toothbrush"}
"""First and last of COCO's things, by which its files are known."""


@dataclass(frozen=True)
class PixelClasses:
    """The meaning of pixel maps."""

    classes: list[str]
    """The chosen classes, `background` first if there is one."""
    meanings: dict[int, int]
    """Value in a map -> index in `classes`, or 255."""


def pixel_classes(
    categories: Mapping[Id, str], classes: Sequence[str] | None, path: Path, *, shifted: bool
) -> PixelClasses:
    """The classes of pixel maps beside an instances file.

    They are the file's categories; where these are COCO's, its stuff follows them.

    Args:
        categories: category id -> name, of the file.
        classes: the chosen classes; None: all, in the order of their ids.
        path: the file, for messages.
        shifted: whether values are category ids less one.

    Raises:
        UserError: there is no such class, or there are too many.
    """
    names = {key: "background" if name.casefold() == "background" else name for key, name in categories.items()}
    if COCO_THINGS.items() <= names.items():
        stuff: dict[Id, str] = {FIRST_STUFF + place: name for place, name in enumerate(STUFF)}
        names = stuff | names if shifted else stuff | dict([OTHER]) | names
    listed = sorted(choose_classes(names, classes, path), key=lambda name: name != "background")
    if len(listed) > IGNORE:
        raise UserError(f"{path}: {len(listed)} classes, and masks hold {IGNORE} at most; choose some with --classes")
    index = {name: value for value, name in enumerate(listed)}
    numbers = {key - shifted: index.get(name, IGNORE) for key, name in names.items() if isinstance(key, int)}
    # 255 are pixels of no category; where values are ids, so is 0, unless it is one.
    void = {} if shifted else {0: IGNORE}
    return PixelClasses(listed, void | numbers | {IGNORE: IGNORE})


@dataclass(frozen=True)
class StuffReader:
    """Reads images with the boxes of an instances file and the mask of a pixel map."""

    boxes: RowReader
    maps: Folder
    """The folder of the maps, each with the path of its image and the suffix .png."""
    meanings: Mapping[int, int]
    """See `PixelClasses`."""

    def read(self, image: CocoImage) -> Row | Reject:
        """The row of an image, or the reason why it has none."""
        return attempt(image.image_id, partial(self._read, image))

    def _read(self, image: CocoImage) -> Row:
        row = self.boxes.read_row(image)
        assert row.height
        assert row.width
        try:
            data = self.maps.read(str(PurePosixPath(image.file_name.replace("\\", "/")).with_suffix(".png")))
        except Reject as reject:
            raise Reject(reject.reason.replace("missing file", "missing mask"), reject.detail) from None
        mask, unknown = translated(read_numbers(data, row.height, row.width), self.meanings)
        if unknown:
            raise Reject(
                "unknown class",
                f"values {some(unknown)} of the pixel map are no category ids; are they ids less one, as in "
                "stuffthingmaps (--stuff-values id-1), or ids (--stuff-values id)?",
            )
        row.has_seg, row.mask = True, mask
        return row
