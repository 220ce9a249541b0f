"""Hugging Face's Parquet: images with objects, masks, or both.

A folder of the files that the library `datasets` writes, and that its hub has of every data set.
"""

from typing import Literal

from multas_ray.formats.files import Folder, FolderOptions
from multas_ray.formats.flags import ExistingFolder
from multas_ray.formats.huggingface_classes import ClassNames
from multas_ray.formats.source import Source, Split


class Options(FolderOptions):
    """The folder, which of its columns are read, and what their values mean."""

    root: ExistingFolder
    """the folder that holds the Parquet files; splits are told by their names"""
    image: str = "image"
    """column of the images"""
    objects: str | None = None
    """column of the objects (default: `objects`, if --masks is not given)"""
    masks: str | None = None
    """column of the masks (default: `label`, `annotation` or `mask` if it holds images, and --objects is not given)"""
    boxes: Literal["xywh", "xyxy"] = "xywh"
    """what the four numbers of a box are: x y width height, or x1 y1 x2 y2"""
    reduce_zero_label: bool = False
    """values of masks count from 1, and 0 is ignored"""
    classes: ClassNames | None = None
    """comma-separated, or a .txt or .json file: the classes of the objects, by number; where the files name them, those
    that are kept. Without objects: of the masks"""
    mask_classes: ClassNames | None = None
    """the same of the masks, by value"""


def read(options: Options) -> Source:
    """List the rows of a folder's Parquet files by the files' footers.

    Raises:
        UserError: there are no such files, one is broken or has no such columns, it cannot be known what the classes
            are, or boxes are written in another way than the options say.
    """
    from multas_ray.formats.huggingface_boxes import check_boxes
    from multas_ray.formats.huggingface_classes import choose_det_classes, choose_seg_classes
    from multas_ray.formats.huggingface_columns import find_columns
    from multas_ray.formats.huggingface_files import check_files, find_files
    from multas_ray.formats.huggingface_rows import RowReader

    folder = Folder(options.root, options.follow_links)
    remarks: list[str] = []
    splits = find_files(folder, remarks)
    first = next(iter(splits.values()))[0]
    columns = find_columns(first.schema, first.name, options.image, options.objects, options.masks)
    remarks.append(columns.told(options.boxes))
    named = check_files(folder, splits, columns)
    det = choose_det_classes(named, options.classes, columns.objects, remarks) if columns.objects else None
    seg = None
    if columns.masks:
        names = options.mask_classes or (None if columns.objects else options.classes)
        seg = choose_seg_classes(names, columns.masks, from_one=options.reduce_zero_label)
    readers = {}
    for split, files in splits.items():
        groups = tuple(group for file in files for group in file.groups)
        readers[split] = RowReader(folder, groups, columns, det, seg, options.boxes)
    check_boxes(next(iter(readers.values())))
    return Source(
        name="huggingface",
        classes={"det": det.names if det else (), "seg": seg.names if seg else ()},
        splits={split: Split(range(len(reader)), reader.read) for split, reader in readers.items()},
        about=f"Hugging Face: {options.root}",
        remarks=remarks,
    )
