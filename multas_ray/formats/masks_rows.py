"""Rows of images with a mask each."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from multas_ray.data.reject import Reject
from multas_ray.data.row import Row, attempt
from multas_ray.formats.files import Folder
from multas_ray.formats.masks_values import MaskClasses, read_values


class MaskImage(NamedTuple):
    """An image and its mask."""

    image_id: str
    name: str
    """Path of the image below the images' folder."""
    mask: str | None
    """Path of its mask below the masks' folder; None where it has none: it is not annotated."""


@dataclass(frozen=True)
class RowReader:
    """Reads images with their masks."""

    images: Folder
    masks: Folder
    classes: MaskClasses

    def read(self, image: MaskImage) -> Row | Reject:
        """The row of an image, annotated for segmentation or not at all, or the reason why it has none."""
        return attempt(image.image_id, partial(self._read, image))

    def _read(self, image: MaskImage) -> Row:
        # Neither height nor width is stated: the mask's own size is compared with the image's.
        row = Row(image.image_id, self.images.read(image.name), None, None)
        if image.mask is None:
            row.notes["images without a mask, taken as unlabelled (--missing)"] += 1
            return row
        row.mask, row.has_seg = read_values(self.masks.read(image.mask), self.classes, row.notes), True
        return row
