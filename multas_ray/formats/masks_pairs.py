"""Images and their masks, found by their names."""

import os
from pathlib import PurePosixPath

from multas_ray.errors import UserError
from multas_ray.formats.files import Folder, image_ids
from multas_ray.formats.listing import SUFFIXES, list_images
from multas_ray.formats.masks_rows import MaskImage

MASK_SUFFIXES = (".png", ".PNG", ".bmp", ".tif", ".tiff", ".gif")
"""Suffixes of masks, in the order in which they are looked for: formats that keep every pixel."""


def pair(images: Folder, masks: Folder, image_suffix: str, mask_suffix: str, remarks: list[str]) -> list[MaskImage]:
    """List the images of a folder, each with its mask.

    Args:
        images: folder of the images.
        masks: folder of the masks, in the same sub-folders; may be the images' own.
        image_suffix: how the names of images end, with or without `.png` or the like; others are left out.
        mask_suffix: how the name of a mask ends in its place.
        remarks: for the user, added to.

    Raises:
        UserError: there is no image, or images would be their own masks.
    """
    shared = os.path.realpath(images.root) == os.path.realpath(masks.root)
    if shared and image_suffix == mask_suffix:
        raise UserError(f"{images.root}: images and masks in one folder; --mask-suffix says how names of masks end")
    names = list_images(images, "", remarks)
    # Where both lie in one folder, `a_mask.png` ends as an image does that may end anyhow; the longer end decides.
    if shared and len(mask_suffix) > len(image_suffix):
        names = [name for name in names if _stem(name, mask_suffix) is None]
    stems = {name: stem for name in names if (stem := _stem(name, image_suffix)) is not None}
    if not stems:
        raise UserError(f"{images.root}: no image here{f' whose name ends in {image_suffix}' if image_suffix else ''}")
    if len(stems) < len(names):
        remarks.append(f"{len(names) - len(stems)} images left out: their names do not end in {image_suffix}")
    # With the image's own suffix, which tells `a.jpg` from `a.png`.
    ids = image_ids(stem + PurePosixPath(name).suffix for name, stem in stems.items())
    return [
        MaskImage(image_id, name, find_mask(masks, stem, mask_suffix))
        for image_id, (name, stem) in zip(ids, stems.items(), strict=True)
    ]


def find_mask(masks: Folder, stem: str, mask_suffix: str = "") -> str | None:
    """The file of a mask.

    Args:
        masks: folder of the masks.
        stem: path below it, without the suffixes.
        mask_suffix: how names of masks end, with or without `.png` or the like.

    Returns:
        Path below the folder; None where there is no such file.
    """
    ends = [""] if _is_whole(mask_suffix) else MASK_SUFFIXES
    candidates = (f"{stem}{mask_suffix}{end}" for end in ends)
    return next((name for name in candidates if masks.has(name)), None)


def _is_whole(suffix: str) -> bool:
    """Whether the end of a name has the suffix of its format too."""
    return suffix.lower().endswith(SUFFIXES)


def _stem(name: str, suffix: str) -> str | None:
    """A name without its end; None if it ends otherwise."""
    whole = name if _is_whole(suffix) else name.removesuffix(PurePosixPath(name).suffix)
    return whole.removesuffix(suffix) if whole.endswith(suffix) else None
