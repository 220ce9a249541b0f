"""The masks of a data.yaml with `masks_dir`: a PNG of class numbers for each image, in a folder beside `images`."""

from pathlib import Path

from multas_ray.errors import UserError
from multas_ray.formats.masks_pairs import find_mask
from multas_ray.formats.masks_rows import MaskImage
from multas_ray.formats.masks_values import MaskClasses
from multas_ray.formats.yolo_file import YoloFile
from multas_ray.formats.yolo_folder import IMAGES, YoloFolder, YoloImage, counterpart
from multas_ray.tasks.segmentation.rows import IGNORE


def mask_classes(file: Path, content: YoloFile) -> MaskClasses:
    """The classes of the masks, as the file has them, and what the masks' values mean.

    Where the file has a single class, the masks' 0 is the background, and 1 the class.

    Raises:
        UserError: `label_mapping` makes a value a class that there is not.
    """
    names = ["background", *content.names] if len(content.names) == 1 else content.names
    own = {number: number for number in range(min(len(names), IGNORE))}
    strange = [value for value in content.label_mapping.values() if value not in own and value != IGNORE]
    if strange:
        raise UserError(f"{file}: label_mapping: {strange[0]} is none of {len(own)} classes, which begin at 0")
    # Values beyond a byte, such as -1 of Cityscapes' licence plates, are in no mask.
    mapped = {raw: value for raw, value in content.label_mapping.items() if 0 <= raw <= IGNORE}
    return MaskClasses(names, own | mapped, {}, str(file))


def with_mask(folder: YoloFolder, image: YoloImage, masks_dir: str) -> MaskImage:
    """The image with its mask, if it has one.

    Raises:
        UserError: no folder `images` is in the image's path, which the masks' folder would replace.
    """
    if IMAGES not in f"/{image.name}":
        raise UserError(
            f"{folder.file}: masks_dir: {image.name} in {folder.files.root} lies in no folder `images`, in whose place "
            f"{masks_dir} would have its mask"
        )
    return MaskImage(image.image_id, image.name, find_mask(folder.files, counterpart(image.name, masks_dir)))
