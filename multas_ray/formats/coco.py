"""COCO instances: boxes, outlines, or some of each.

One JSON file says what is annotated, image by image and object by object.
"""

from pathlib import Path
from typing import Any, Literal

from multas_ray.formats.files import FileOptions, Folder
from multas_ray.formats.flags import ExistingFolder
from multas_ray.formats.partial_annotation import PartialOptions, partially_annotated
from multas_ray.formats.source import Source, Split, with_background


class Options(FileOptions, PartialOptions):
    """The file, its images, and what is made of them."""

    images: ExistingFolder
    """folder of the images"""
    annotations: Path
    """instances json"""
    split: str
    """name of the split that is written, e.g. train"""
    empty: Literal["background", "unlabelled", "skip"] = "background"
    """what an image without an object is"""
    boxes_from_masks: bool = False
    """make boxes of outlines where objects have none"""


def read(options: Options) -> Source:
    """List the images of an instances file: one split.

    Raises:
        UserError: the file is not COCO instances, contradicts itself, or has no such class.
    """
    from multas_ray.formats.coco_instances import read_instances
    from multas_ray.formats.coco_rows import RowReader

    masks = options.partial is None or options.partial.get("det", 0) < 1
    skip_empty = options.empty == "skip"
    instances = read_instances(options.annotations, options.classes, masks=masks, skip_empty=skip_empty)
    reader = RowReader(
        folder=Folder(options.images, options.follow_links),
        labels=instances.labels,
        tasks=instances.tasks,
        empty="unlabelled" if options.empty == "unlabelled" else "background",
        boxes_from_masks=options.boxes_from_masks,
        masks=masks,
    )
    split: Split[Any] = Split(instances.images, reader.read)
    if options.partial:
        ids = [image.image_id for image in instances.images]
        split = partially_annotated(split, ids, options.partial, options.seed)
    about = f"COCO: {options.annotations}"
    return Source("coco", with_background(instances.classes), {options.split: split}, about, instances.remarks)
