"""YOLO's layout, a data.yaml of Ultralytics or Roboflow: boxes, outlines, masks.

A label file has a line for each object, a box or an outline, which may be mixed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from multas_ray.errors import UserError, quoted
from multas_ray.formats.files import FileOptions
from multas_ray.formats.flags import Names
from multas_ray.formats.partial_annotation import PartialOptions, partially_annotated
from multas_ray.formats.source import MOST_CLASSES, Source, Split, with_background

if TYPE_CHECKING:
    from multas_ray.config import Task
    from multas_ray.formats.masks_rows import MaskImage
    from multas_ray.formats.yolo_file import YoloFile
    from multas_ray.formats.yolo_folder import YoloFolder, YoloImage

Image = TypeVar("Image", bound="YoloImage | MaskImage")


class Options(FileOptions, PartialOptions):
    """The file, which of its splits are written, and what an image without a label is."""

    data: Path = Field(title="FILE")
    """data.yaml"""
    split: Names | None = Field(None, title="NAMES")
    """comma-separated: train, val, test (default: all that the file has)"""
    missing: Literal["empty", "unlabelled", "skip"] | None = None
    """what an image without a label file is; asked for where there is one"""


def read(options: Options) -> Source:
    """List the images of the splits of a data.yaml.

    Raises:
        UserError: the file is no data.yaml, names what is not there, has no such class or split, or it is not said what
            an image without a label is.
    """
    from multas_ray.formats.yolo_file import read_yolo_file
    from multas_ray.formats.yolo_folder import open_folder

    content = read_yolo_file(options.data)
    folder = open_folder(options.data, content, options.follow_links)
    remarks: list[str] = []
    images = _list_splits(options, folder, content.splits, remarks)
    make_splits = _with_masks if content.masks_dir else _with_labels
    classes, splits = make_splits(options, content, folder, images, remarks)
    if options.partial:
        for name, split in splits.items():
            # Training images lose annotation; boxes alone are wanted of all.
            if name != "train" and options.partial.get("det", 0) < 1:
                remarks.append(f"{name} keeps all its annotation: --partial is for train")
                continue
            ids = [item.image_id for item in split.items]
            splits[name] = partially_annotated(split, ids, options.partial, options.seed)
    return Source("yolo", classes, splits, f"YOLO: {options.data}", remarks)


def _list_splits(
    options: Options, folder: "YoloFolder", given: Mapping[str, Sequence[str]], remarks: list[str]
) -> "dict[str, list[YoloImage]]":
    """The images of the chosen splits."""
    unknown = [name for name in options.split or () if name not in given]
    if unknown or not given:
        asked = f"no split {quoted(unknown[0])}; " if unknown else ""
        raise UserError(f"{options.data}: {asked}it has {', '.join(given) or 'none of train, val and test'}")
    images = {}
    for name in options.split or given:
        try:
            images[name] = folder.list_split(name, given[name], remarks)
        except UserError as error:
            # A test split is often named and not published. Any other that is missing is a mistake.
            if name != "test" or options.split:
                raise
            remarks.append(f"{error}; left out")
    if not images:
        raise UserError(remarks[-1])
    return images


def _with_labels(
    options: Options,
    content: "YoloFile",
    folder: "YoloFolder",
    images: "dict[str, list[YoloImage]]",
    remarks: list[str],
) -> "tuple[dict[Task, Sequence[str]], dict[str, Split[Any]]]":
    """The classes and splits of images with label files."""
    from multas_ray.formats.yolo_folder import label_name
    from multas_ray.formats.yolo_labels import Labels
    from multas_ray.formats.yolo_rows import RowReader, hold_outlines

    # A name, and not an object: what the boxes leave is background.
    objects = {number: name for number, name in enumerate(content.names) if name.casefold() != "background"}
    background = frozenset(range(len(content.names))) - objects.keys()
    if len(objects) < len(content.names):
        remarks.append(f"{options.data}: class 'background' left out: it is no object's")
    classes = _choose(list(objects.values()), options)
    index = {name: label for label, name in enumerate(classes)}
    chosen = {number: index.get(name) for number, name in objects.items()}
    labels = Labels(folder.files, chosen, content.keypoint_columns, background)

    def is_labelled(image: "YoloImage") -> bool:
        # An image that is not there either is rejected where it is read.
        return folder.files.has(label_name(image.name)) or not folder.files.has(image.name)

    images = _settle_missing(options, images, is_labelled, label_name)
    masks = options.partial is None or options.partial.get("det", 0) < 1
    outlines = masks and hold_outlines(labels, [image for split in images.values() for image in split])
    if len(classes) > MOST_CLASSES and outlines:
        raise UserError(
            f"{options.data}: {len(classes)} classes, and masks hold {MOST_CLASSES} at most; choose some with "
            "--classes, or keep the boxes alone with --partial det=1"
        )
    masks = masks and len(classes) <= MOST_CLASSES
    missing = None if options.missing == "skip" else options.missing
    reader = RowReader(labels, missing, masks=masks, empty_masks=outlines)
    return with_background(classes), {name: Split(split, reader.read) for name, split in images.items()}


def _with_masks(
    options: Options,
    content: "YoloFile",
    folder: "YoloFolder",
    images: "dict[str, list[YoloImage]]",
    remarks: list[str],
) -> "tuple[dict[Task, Sequence[str]], dict[str, Split[Any]]]":
    """The classes and splits of images with masks."""
    from multas_ray.formats.masks_rows import RowReader
    from multas_ray.formats.yolo_folder import counterpart, label_name
    from multas_ray.formats.yolo_masks import mask_classes, with_mask

    masks_dir = content.masks_dir or ""
    if options.missing == "empty":
        raise UserError("--missing empty: it is for label files; without a mask, nothing is known of an image's pixels")
    classes = mask_classes(options.data, content)
    if options.classes is not None:
        classes = classes.only(_choose(classes.names, options))
    masked = {name: [with_mask(folder, image, masks_dir) for image in split] for name, split in images.items()}
    if any(folder.files.has(label_name(image.name)) for split in masked.values() for image in split[:100]):
        remarks.append(f"{options.data}: masks_dir: masks are read, and label files are not")
    masked = _settle_missing(
        options, masked, lambda image: image.mask is not None, lambda name: f"{counterpart(name, masks_dir)}.png"
    )
    reader = RowReader(folder.files, folder.files, classes)
    splits: dict[str, Split[Any]] = {name: Split(split, reader.read) for name, split in masked.items()}
    return {"det": [], "seg": classes.names}, splits


def _choose(names: Sequence[str], options: Options) -> list[str]:
    """The classes of the data set: those of the options, in their order, or all."""
    chosen = list(names if options.classes is None else options.classes)
    unknown = [name for name in chosen if name not in names]
    if unknown or len(set(chosen)) < len(chosen):
        problem = f"no class {', '.join(map(quoted, unknown))}" if unknown else "a class twice"
        raise UserError(f"--classes: {problem}; allowed once each: {', '.join(names)}")
    return chosen


def _settle_missing(
    options: Options,
    images: dict[str, list[Image]],
    is_annotated: Callable[[Image], bool],
    place: Callable[[str], str],
) -> dict[str, list[Image]]:
    """The images without those that are to be skipped.

    Args:
        options: which say what an image without annotation is.
        images: of each split.
        is_annotated: whether an image has its label file or mask.
        place: where it is looked for, by the image's path.

    Raises:
        UserError: an image has none, and the options do not say what it is.
    """
    if options.missing is None:
        without = [image for split in images.values() for image in split if not is_annotated(image)]
        if without:
            raise UserError(
                f"{options.data}: {len(without)} of {sum(map(len, images.values()))} images have no label, such as "
                f"{without[0].name} ({place(without[0].name)} is not there); --missing says what they are: empty (no "
                "object is on them), unlabelled (nobody looked) or skip"
            )
    if options.missing != "skip":
        return images
    return {name: [image for image in split if is_annotated(image)] for name, split in images.items()}
