"""VOC's layout: XML of boxes, masks of class ids.

By whomever it was made (LabelImg, CVAT, Roboflow): images, XML of boxes, masks of class ids or colours, and lists.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Literal

from pydantic import Field

from multas_ray.config import Task
from multas_ray.errors import UserError
from multas_ray.formats.files import FileOptions
from multas_ray.formats.flags import ExistingFolder
from multas_ray.formats.source import Source, Split, with_background
from multas_ray.formats.voc_folder import CLASS_TABLE, PARTS, VocFolder, VocImage

NamedList = tuple[str, str, tuple[Task, ...]]
"""The split that a list's images belong to, its name, and the tasks that they are annotated for."""
WORDS: dict[Task, str] = {"det": "boxes", "seg": "masks"}


class Options(FileOptions):
    """The folder, and the lists of its images by what they are annotated for."""

    root: ExistingFolder
    """the folder that holds JPEGImages, or images and XML; or Roboflow's train, valid and test, without lists"""
    det: str | None = Field(None, title="SET/SPLIT")
    """training images annotated with boxes only, e.g. MXEdet/train; `all`: every one"""
    seg: str | None = Field(None, title="SET/SPLIT")
    """training images annotated with masks only"""
    full: str | None = Field(None, title="SET/SPLIT")
    """training images annotated with both"""
    unlabelled: str | None = Field(None, title="SET/SPLIT")
    """training images without annotation"""
    val: str | None = Field(None, title="SET/SPLIT")
    """validation images, annotated with what the folder has: boxes, masks or both"""
    empty: Literal["background", "unlabelled", "skip"] | None = None
    """what an image without XML is (default: rejected)"""


def read(options: Options) -> Source:
    """List the images of a folder in VOC's layout.

    Raises:
        UserError: no list is named, one is missing or no text, or it cannot be known what the classes are.
    """
    from multas_ray.formats.voc_classes import choose_classes
    from multas_ray.formats.voc_rows import RowReader

    folder = VocFolder(options.root, options.follow_links)
    remarks: list[str] = []
    splits = _list_images(folder, options, remarks)
    classes = choose_classes(folder, list(chain(*splits.values())), options.classes, remarks)
    if options.empty == "skip":
        for name, images in splits.items():
            splits[name] = [image for image in images if "det" not in image.tasks or folder.has_xml(image.image_id)]
    reader = RowReader(folder, classes, None if options.empty == "skip" else options.empty)
    return Source(
        name="voc",
        classes=with_background(classes.classes),
        splits={name: Split(images, reader.read) for name, images in splits.items()},
        about=f"VOC: {options.root}",
        remarks=remarks,
    )


def _list_images(folder: VocFolder, options: Options, remarks: list[str]) -> dict[str, list[VocImage]]:
    """The images of each split: those of the lists that the options name, or of the folder's parts."""
    lists = _named_lists(options, folder, remarks)
    if lists:
        return _of_lists(folder, lists, remarks)
    if not folder.parts:
        raise UserError(
            "voc: nothing to read; give at least one of --det, --seg, --full, --unlabelled, --val (`all` takes every "
            f"image), or a --root with {', '.join(PARTS.values())}, as Roboflow exports it"
        )
    found = {split: folder.list_images(remarks, part) for split, part in folder.parts.items()}
    if not folder.annotated or not any(found.values()):
        parts = ", ".join(folder.parts.values())
        raise UserError(f"--root {folder.root}: {parts}: no images with XML, or with masks and {CLASS_TABLE}, are here")
    return {split: [VocImage(id_, folder.annotated) for id_ in sorted(ids)] for split, ids in found.items() if ids}


def _named_lists(options: Options, folder: VocFolder, remarks: list[str]) -> list[NamedList]:
    """The lists that the options name."""
    roles: list[tuple[str, str | None, tuple[Task, ...]]] = [
        ("train", options.det, ("det",)),
        ("train", options.seg, ("seg",)),
        ("train", options.full, ("det", "seg")),
        ("train", options.unlabelled, ()),
    ]
    if options.val:
        roles.append(("val", options.val, folder.annotated or ("det", "seg")))
        if len(folder.annotated) == 1:
            remarks.append(f"val: annotated with {WORDS[folder.annotated[0]]} alone, the folder has nothing else")
    return [(split, name, tasks) for split, name, tasks in roles if name]


def _of_lists(folder: VocFolder, lists: Sequence[NamedList], remarks: list[str]) -> dict[str, list[VocImage]]:
    """The images of each split; one that stands in several lists is annotated for the tasks of all."""
    splits: dict[str, dict[str, set[Task]]] = {split: {} for split, _, _ in lists}
    for split, name, tasks in lists:
        for image_id in folder.read_list(name, remarks):
            splits[split].setdefault(image_id, set()).update(tasks)
    # By id, so that rows of all task masks lie side by side and any stretch of the file holds each of them.
    return {
        split: [VocImage(image_id, tuple(sorted(tasks))) for image_id, tasks in sorted(images.items())]
        for split, images in splits.items()
    }
