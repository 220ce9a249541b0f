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
from multas_ray.formats.flags import ExistingFolder, Names
from multas_ray.formats.source import Source, Split

if TYPE_CHECKING:
    from multas_ray.formats.masks_presets import Preset
    from multas_ray.formats.masks_rows import MaskImage


class Options(FolderOptions):
    """The two folders, what the masks mean, and how their names differ from the images'."""

    images: ExistingFolder
    """folder of the images"""
    masks: ExistingFolder
    """folder of their masks, with the same sub-folders"""
    split: Names
    """splits that are written, e.g. train,val; each is in sub-folders of its name, where there are such"""
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
    """List the images of a folder with their masks.

    Raises:
        UserError: it is not said what the masks mean, a split has no folders of its own beside others, there is no
            image, or an image has no mask and it is not said what it is.
    """
    from multas_ray.formats.masks_pairs import pair
    from multas_ray.formats.masks_rows import RowReader

    preset = _preset(options)
    remarks: list[str] = []
    splits = {}
    for name in options.split:
        images, masks = _folders(options, name)
        pairs = pair(images, masks, preset.image_suffix, preset.mask_suffix, remarks)
        reader = RowReader(images, masks, preset.classes)
        splits[name] = Split(_settle_missing(options, name, pairs), reader.read)
    return Source(
        name="masks",
        classes={"det": [], "seg": preset.classes.names},
        splits=splits,
        about=f"masks: {options.masks}",
        remarks=remarks,
    )


def _folders(options: Options, split: str) -> tuple[Folder, Folder]:
    """The folders of a split's images and masks: those of its name, if both are there, else the whole."""
    whole = [Folder(root, options.follow_links) for root in (options.images, options.masks)]
    if all(folder.has(split) for folder in whole):
        images, masks = (replace(folder, root=folder.root / split) for folder in whole)
    elif len(options.split) == 1:
        images, masks = whole
    else:
        raise UserError(
            f"--split {split}: of several splits, each needs a folder of its name in {options.images} and in "
            f"{options.masks}"
        )
    return images, masks


def _settle_missing(options: Options, split: str, images: "list[MaskImage]") -> "list[MaskImage]":
    """The images without those that are to be skipped."""
    without = [image for image in images if image.mask is None]
    if without and options.missing is None:
        raise UserError(
            f"{split}: {len(without)} of {len(images)} images have no mask in {options.masks}, such as "
            f"{without[0].name}: --missing unlabelled or skip says what they are; --image-suffix and --mask-suffix say "
            "how the names of images and masks differ"
        )
    return images if options.missing != "skip" else [image for image in images if image.mask is not None]


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
