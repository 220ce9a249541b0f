"""COCO: boxes, outlines, or some of each; Roboflow's folders, panoptic, LVIS.

A JSON file says what is annotated, image by image and object by object; PNGs may hold the pixels' classes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from multas_ray.config import TASKS, Task
from multas_ray.errors import UserError, quoted
from multas_ray.formats.files import FileOptions, Folder
from multas_ray.formats.flags import ExistingFolder
from multas_ray.formats.partial_annotation import PartialOptions, partially_annotated
from multas_ray.formats.source import Source, Split, with_background

if TYPE_CHECKING:
    from multas_ray.formats.coco_file import CocoImage
    from multas_ray.formats.coco_instances import Instances
    from multas_ray.formats.coco_rows import RowReader

ROBOFLOW = {"train": "train", "val": "valid", "test": "test"}
"""Splits, and the folders that Roboflow's export has for them."""
ROBOFLOW_FILE = "_annotations.coco.json"
"""The instances json of such a folder, beside its images."""


class Options(FileOptions, PartialOptions):
    """The file, its images, and what is made of them."""

    images: ExistingFolder | None = None
    """folder of the images"""
    annotations: Path | None = None
    """json of instances, or of panoptic annotation"""
    split: str | None = None
    """name of the split that is written, e.g. train"""
    root: ExistingFolder | None = None
    """Roboflow's export, in place of these three: train, valid and test with _annotations.coco.json"""
    panoptic: ExistingFolder | None = None
    """folder of the PNGs of panoptic annotation"""
    stuff: ExistingFolder | None = None
    """folder of pixel maps, which are read in place of outlines"""
    stuff_values: Literal["id", "id-1"] = "id"
    """values of the pixel maps: category ids, or these less one, as in stuffthingmaps"""
    empty: Literal["background", "unlabelled", "skip"] = "background"
    """what an image without an object is"""
    boxes_from_masks: bool = False
    """make boxes of outlines where objects have none"""


class _Part(NamedTuple):
    """One file, and what is wanted of it."""

    split: str
    images: Folder
    annotations: Path
    partial: Mapping[Task, float] | None


class _Listed(NamedTuple):
    """The images of a file."""

    classes: Mapping[Task, Sequence[str]]
    images: Sequence["CocoImage"]
    read: Callable[[Any], Any]
    """Reads one of the images; see `Split`."""
    remarks: Sequence[str]
    reader: "RowReader | None" = None
    """What reads the images of an instances file."""


def read(options: Options) -> Source:
    """List the images of a file, or of the files of Roboflow's export: a split each.

    Raises:
        UserError: the options name no file, or a file is not COCO's, contradicts itself, or has no such class.
    """
    list_images = _list_panoptic if options.panoptic else _list_stuff if options.stuff else _list_instances
    parts = _with_tasks([(part, list_images(options, part)) for part in _parts(options)])
    remarks = [f"{part.split}: {line}" if options.root else line for part, listed in parts for line in listed.remarks]
    if options.root:
        empty = [part for part, listed in parts if not listed.images]
        remarks += [f"{part.split}: {part.annotations} lists no image: left out" for part in empty]
        parts = [(part, listed) for part, listed in parts if listed.images] or parts
    (first, listed), *others = parts
    for part, other in others:
        _check_same_classes(first, listed.classes["det"], part, other.classes["det"])
    return Source(
        name="coco",
        classes=listed.classes,
        splits={part.split: _split(part, listed, options.seed) for part, listed in parts},
        about=f"COCO: {options.root or options.annotations}",
        remarks=remarks,
    )


def _with_tasks(parts: "list[tuple[_Part, _Listed]]") -> "list[tuple[_Part, _Listed]]":
    """Let a file without any object be annotated for the tasks of the other files of the export; alone, for both."""
    found = {task for _, listed in parts if listed.reader for task in listed.reader.tasks}
    tasks = tuple(task for task in TASKS if task in found) or TASKS
    settled = []
    for part, listed in parts:
        if listed.reader is not None and not listed.reader.tasks:
            listed = listed._replace(read=replace(listed.reader, tasks=tasks).read)
        settled.append((part, listed))
    return settled


def _parts(options: Options) -> list[_Part]:
    """The files that the options name."""
    named = {"--images": options.images, "--annotations": options.annotations, "--split": options.split}
    given, missing = [name for name in named if named[name]], [name for name in named if not named[name]]
    if options.panoptic and options.stuff:
        raise UserError("coco: --panoptic and --stuff both say what pixels are; give one of them")
    if options.root:
        given += [name for name, value in [("--panoptic", options.panoptic), ("--stuff", options.stuff)] if value]
        if given:
            raise UserError(f"coco: --root stands for images, files and splits; it does not go with {', '.join(given)}")
        return _parts_of_roboflow(options.root, options)
    if not options.images or not options.annotations or not options.split:
        raise UserError(
            f"coco: {', '.join(missing)} missing: give --images, --annotations and --split, or --root with a folder of "
            f"train, valid and test that hold {ROBOFLOW_FILE}"
        )
    return [_Part(options.split, Folder(options.images, options.follow_links), options.annotations, options.partial)]


def _parts_of_roboflow(root: Path, options: Options) -> list[_Part]:
    """The splits of Roboflow's export. Only training images lose annotation by `partial`, unless all lose masks."""
    from multas_ray.data.reject import Reject

    parts = []
    for split, name in ROBOFLOW.items():
        folder = Folder(root / name, options.follow_links)
        if folder.has(ROBOFLOW_FILE):
            try:
                file = folder.check(ROBOFLOW_FILE)
            except Reject as reject:
                raise UserError(f"--root {root}: {reject.reason}: {reject.detail}") from None
            partial = options.partial
            if partial and split != "train":
                # Boxes alone are wanted of all.
                partial = {"det": 1.0} if partial.get("det", 0) >= 1 else None
            parts.append(_Part(split, folder, file, partial))
    if not parts:
        raise UserError(
            f"--root {root}: none of {', '.join(ROBOFLOW.values())} is there with {ROBOFLOW_FILE}, as Roboflow exports "
            "COCO; other folders are named with --images, --annotations and --split"
        )
    return parts


def _list_instances(options: Options, part: _Part) -> _Listed:
    masks = part.partial is None or part.partial.get("det", 0) < 1
    instances, reader = _instances(options, part, masks=masks)
    return _Listed(with_background(instances.classes), instances.images, reader.read, instances.remarks, reader)


def _list_stuff(options: Options, part: _Part) -> _Listed:
    from multas_ray.formats.coco_stuff import STUFF_NAMES, StuffReader, pixel_classes

    assert options.stuff
    instances, boxes = _instances(options, part, masks=False, pixel_classes=STUFF_NAMES)
    pixels = pixel_classes(
        instances.categories, options.classes, part.annotations, shifted=options.stuff_values == "id-1"
    )
    # Of a file without any object: nobody's boxes are there.
    boxes = boxes if boxes.tasks else replace(boxes, tasks=TASKS)
    reader = StuffReader(boxes, Folder(options.stuff, options.follow_links), pixels.meanings)
    classes: dict[Task, Sequence[str]] = {"det": instances.classes, "seg": pixels.classes}
    return _Listed(classes, instances.images, reader.read, instances.remarks)


def _instances(
    options: Options, part: _Part, *, masks: bool, pixel_classes: Collection[str] = ()
) -> tuple["Instances", "RowReader"]:
    """The content of an instances file, and what reads its images; see `read_instances`."""
    from multas_ray.formats.coco_instances import read_instances
    from multas_ray.formats.coco_rows import RowReader

    instances = read_instances(
        part.annotations,
        options.classes,
        masks=masks,
        skip_empty=options.empty == "skip",
        pixel_classes=pixel_classes,
    )
    reader = RowReader(
        folder=part.images,
        labels=instances.labels,
        tasks=instances.tasks,
        empty="unlabelled" if options.empty == "unlabelled" else "background",
        boxes_from_masks=options.boxes_from_masks,
        masks=masks,
    )
    return instances, reader


def _list_panoptic(options: Options, part: _Part) -> _Listed:
    from multas_ray.formats.coco_panoptic import PanopticReader, read_panoptic

    assert options.panoptic
    panoptic = read_panoptic(part.annotations, options.classes, skip_empty=options.empty == "skip")
    reader = PanopticReader(part.images, Folder(options.panoptic, options.follow_links), panoptic.labels)
    return _Listed(panoptic.classes, panoptic.images, reader.read, panoptic.remarks)


def _check_same_classes(first: _Part, expected: Sequence[str], part: _Part, classes: Sequence[str]) -> None:
    """Refuse a file of other classes than the first of an export."""
    if list(expected) != list(classes):
        others = ", ".join(map(quoted, sorted(set(expected) ^ set(classes))))
        what = f"differ in {others}" if others else "are in another order"
        raise UserError(
            f"{part.annotations}: its classes and those of {first.annotations} {what}; name with --classes some of both"
        )


def _split(part: _Part, listed: _Listed, seed: int) -> Split[Any]:
    split: Split[Any] = Split(listed.images, listed.read)
    if part.partial:
        ids = [image.image_id for image in listed.images]
        return partially_annotated(split, ids, part.partial, seed)
    return split
