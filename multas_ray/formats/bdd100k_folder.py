"""The two image sets of BDD100K: which image is annotated with what, in which split."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from multas_ray.data.reject import Reject
from multas_ray.documents import read_json
from multas_ray.errors import UserError, quoted
from multas_ray.formats.bdd100k_rows import BddImage, class_of
from multas_ray.formats.files import Folder

SPLITS = ("train", "val")
BOXES = ("labels/det_20/det_{split}.json", "labels/bdd100k_labels_images_{split}.json")
"""Files of boxes on the 100K images, revised in 2020 and as they were in 2018: the first that is there is read."""
MASKS = "labels/sem_seg/masks/{split}"
"""Folder of masks on the 10K images."""
SHOWN = 10
"""Largest number of categories that a remark names."""


def list_images(folder: Folder, split: str, remarks: list[str]) -> list[BddImage]:
    """List the images of a split of both sets, in the order of their names.

    An image that both sets have, under the same name, is one image with both annotations. Files of other sizes are
    other photographs, of the same drive.

    Args:
        folder: that holds `images` and `labels`.
        split: train or val.
        remarks: for the user, added to.

    Raises:
        UserError: the file of boxes is not Scalabel's.
    """
    frames, masks = _frames(folder, split, remarks), _masks(folder, split)
    if bool(frames) != bool(masks):
        lacking = MASKS.format(split=split) if frames else " or ".join(BOXES).format(split=split)
        remarks.append(f"{split}: {'boxes' if frames else 'pixels'} only, there is no {lacking}")
    images = []
    # By name, so that rows of all task masks lie side by side and any stretch of the split holds each of them.
    for name in sorted({*frames, *masks}):
        large, small = (f"images/{size}/{split}/{name}.jpg" for size in ("100k", "10k"))
        mask = f"{MASKS.format(split=split)}/{name}.png"
        if name in frames and name in masks and _same_size(folder, large, small):
            images.append(BddImage(name, (large, small), frames[name], mask))
            continue
        if name in frames:
            images.append(BddImage(name, (large,), frames[name], None))
        if name in masks:
            images.append(BddImage(name, (small,), None, mask))
    return images


def without_leaks(images: Mapping[str, Sequence[BddImage]], remarks: list[str]) -> dict[str, list[BddImage]]:
    """The splits, without the training images whose names `val` of either set has too.

    The sets were divided independently: what one set trains on, the other may validate on.

    Args:
        images: of train and val.
        remarks: for the user, added to.
    """
    validated = {image.name for image in images["val"]}
    leaked = [image for image in images["train"] if image.name in validated]
    if leaked:
        counts = Counter(image.set_name for image in leaked)
        of = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
        remarks.append(f"train: {len(leaked)} images left out, whose names are in val too ({of})")
    return {
        "train": [image for image in images["train"] if image.name not in validated],
        "val": list(images["val"]),
    }


def _frames(folder: Folder, split: str, remarks: list[str]) -> dict[str, Any]:
    """The objects of each image, unchecked, by its name; empty where there is no file of them."""
    name = next((name for name in (each.format(split=split) for each in BOXES) if folder.has(name)), None)
    if name is None:
        return {}
    try:
        file = folder.check(name)
    except Reject as reject:
        raise UserError(f"{reject.reason}: {reject.detail}") from None
    content = read_json(file)
    # Scalabel's files are a list of frames, or have it beside a description.
    content = content.get("frames") if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise UserError(f"{file}: not labels of Scalabel's: a list of frames is needed")
    frames: dict[str, Any] = {}
    for place, item in enumerate(content):
        image = item.get("name") if isinstance(item, dict) else None
        if not isinstance(image, str) or not image:
            raise UserError(f"{file}: frame {place} has no name")
        if image.removesuffix(".jpg") in frames:
            raise UserError(f"{file}: the image {quoted(image)} stands twice; where two files were joined, take one")
        frames[image.removesuffix(".jpg")] = [] if item.get("labels") is None else item["labels"]
    _remark_others(frames.values(), split, remarks)
    return frames


def _remark_others(frames: Iterable[Any], split: str, remarks: list[str]) -> None:
    """Remark the boxes whose categories are no classes."""
    labels = (label for each in frames if isinstance(each, list) for label in each if isinstance(label, dict))
    names = Counter(str(label.get("category")) for label in labels if label.get("box2d"))
    others = {name: count for name, count in names.most_common() if class_of(name) is None}
    if others:
        some = ", ".join(f"{quoted(name)} ({count})" for name, count in list(others.items())[:SHOWN])
        remarks.append(f"{split}: {sum(others.values())} boxes left out, whose categories are no classes: {some}")


def _masks(folder: Folder, split: str) -> set[str]:
    """The names of the images that have a mask, without suffix."""
    place = folder.root / MASKS.format(split=split)
    files = place.iterdir() if place.is_dir() else ()
    return {file.stem for file in files if file.suffix == ".png" and file.name.isprintable()}


def _same_size(folder: Folder, *names: str) -> bool:
    """Whether files are there and have as many bytes as each other: cheap, where thousands are compared."""
    try:
        return len({(folder.root / name).stat().st_size for name in names}) == 1
    except OSError:
        return False
