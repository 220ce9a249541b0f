"""Folders of images and masks: Cityscapes, ADE20K, CamVid and their like.

Each image has a mask of the same name, or of one that ends otherwise. There are no boxes, and there need be no
background.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from multas_ray.errors import UserError
from multas_ray.formats.files import Folder, FolderOptions
from multas_ray.formats.flags import ExistingFolder
from multas_ray.formats.source import Source, Split

if TYPE_CHECKING:
    from multas_ray.formats.masks_presets import Preset


class Options(FolderOptions):
    """The two folders, what the masks mean, and how their names differ from the images'."""

    images: ExistingFolder
    """folder of the images"""
    masks: ExistingFolder
    """folder of their masks, with the same sub-folders"""
    split: str
    """name of the split that is written, e.g. train"""
    classes: Path | None = Field(None, title="FILE")
    """classes, a line each: `name: value` or `name: red,green,blue`"""
    preset: Literal["cityscapes-labelids", "cityscapes-trainids", "ade20k", "camvid"] | None = None
    """classes and names of a public data set"""
    image_suffix: str | None = Field(None, title="END")
    """how names of images end that have a mask, e.g. _leftImg8bit"""
    mask_suffix: str | None = Field(None, title="END")
    """how names of masks end in its place, e.g. _gtFine_labelIds or _mask.png"""
    reduce_zero_label: bool = False
    """values of masks count from 1, and 0 is ignored"""
    missing: Literal["unlabelled", "skip"] | None = None
    """what an image without a mask is; asked for where there is one"""


def read(options: Options) -> Source:
    """List the images of a folder with their masks: one split.

    Raises:
        UserError: it is not said what the masks mean, there is no image, or an image has no mask.
    """
    from multas_ray.formats.masks_pairs import pair
    from multas_ray.formats.masks_rows import RowReader

    preset = _preset(options)
    images, masks = Folder(options.images, options.follow_links), Folder(options.masks, options.follow_links)
    remarks: list[str] = []
    pairs = pair(images, masks, preset.image_suffix, preset.mask_suffix, remarks)
    without = [image for image in pairs if image.mask is None]
    if without and options.missing is None:
        raise UserError(
            f"{len(without)} of {len(pairs)} images have no mask in {options.masks}, such as "
            f"{without[0].name}: --missing unlabelled or skip says what they are; --image-suffix and --mask-suffix say "
            "how the names of images and masks differ"
        )
    if options.missing == "skip":
        pairs = [image for image in pairs if image.mask is not None]
    reader = RowReader(images, masks, preset.classes)
    return Source(
        name="masks",
        classes={"det": [], "seg": preset.classes.names},
        splits={options.split: Split(pairs, reader.read)},
        about=f"masks: {options.masks}",
        remarks=remarks,
    )


def _preset(options: Options) -> "Preset":
    """The classes and suffixes that the options name."""
    from multas_ray.formats.masks_classes import read_classes
    from multas_ray.formats.masks_presets import PRESETS, Preset

    if (options.classes is None) == (options.preset is None):
        raise UserError(f"masks: give either --classes FILE or --preset {'|'.join(PRESETS)}: it says what masks mean")
    chosen = PRESETS[options.preset] if options.preset else Preset(read_classes(options.classes or Path()))
    if options.reduce_zero_label:
        if options.preset or chosen.classes.colours:
            raise UserError("--reduce-zero-label: it is for --classes with values; a preset knows its own")
        chosen = replace(chosen, classes=chosen.classes.from_one())
    return replace(
        chosen,
        image_suffix=chosen.image_suffix if options.image_suffix is None else options.image_suffix,
        mask_suffix=chosen.mask_suffix if options.mask_suffix is None else options.mask_suffix,
    )
