"""BDD100K: boxes on the 100K images, pixels on the 10K images.

Two sets of photographs that overlap in part, each annotated for one task: partially annotated as it is published.
"""

from multas_ray.errors import UserError
from multas_ray.formats.files import Folder, FolderOptions
from multas_ray.formats.flags import ExistingFolder
from multas_ray.formats.source import Source, Split


class Options(FolderOptions):
    """The folder."""

    root: ExistingFolder
    """the folder that holds images and labels"""


def read(options: Options) -> Source:
    """List the images of both sets: the splits `train` and `val`.

    What is in `val` of one set is not in `train` of the other.

    Raises:
        UserError: there are no labels, or a file of labels is not Scalabel's.
    """
    from multas_ray.formats.bdd100k_folder import BOXES, MASKS, SPLITS, list_images, without_leaks
    from multas_ray.formats.bdd100k_rows import DET_CLASSES, SEG_CLASSES, RowReader

    folder = Folder(options.root, options.follow_links)
    remarks: list[str] = []
    found = {split: list_images(folder, split, remarks) for split in SPLITS}
    images = {split: each for split, each in without_leaks(found, remarks).items() if each}
    if not images:
        raise UserError(
            f"{options.root}: no labels of BDD100K here: {BOXES[0].format(split='train')} (boxes) or "
            f"{MASKS.format(split='train')} (pixels) is needed, or those of val"
        )
    reader = RowReader(folder)
    return Source(
        name="bdd100k",
        classes={"det": DET_CLASSES, "seg": SEG_CLASSES},
        splits={split: Split(each, reader.read) for split, each in images.items()},
        about=f"BDD100K: {options.root}",
        remarks=remarks,
    )
