"""Write Pascal VOC's animals as two data sets with different formats and different classes.

python docs/results/two_sources/folders.py --voc VOC2012 --out data/two_folders

OUT/boxes is in YOLO's layout, with boxes of BOXES on the images of MXEdet; OUT/masks has a folder of images and one of
masks, with pixels of MASKS on the images of MXEseg. In each, the other's animals stand around without annotation.
data_naive.yaml and classes_naive.txt list all six classes, as if all had been looked for. Validation images are VOC's,
annotated in the same way.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from defusedxml import ElementTree
from PIL import Image

BOXES = ("cat", "dog", "person")
MASKS = ("cow", "horse", "sheep", "person")
ANIMALS = ("cat", "cow", "dog", "horse", "sheep", "person")
VOC_VALUES = {"cat": 8, "cow": 10, "dog": 12, "horse": 13, "person": 15, "sheep": 17}
"""Values of the classes in VOC's masks, whose 255 is void."""
SPLITS = {
    "train": {"boxes": "MXEdet/train", "masks": "MXEseg/train"},
    "val": {"boxes": "Main/val", "masks": "Main/val"},
}


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", required=True, type=Path, metavar="FOLDER", help="VOC2012 of the VOCdevkit")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    for split, lists in SPLITS.items():
        for kind, write in (("boxes", write_boxes), ("masks", write_masks)):
            names = (arguments.voc / "ImageSets" / f"{lists[kind]}.txt").read_text().split()
            for name in names:
                image = arguments.out / kind / "images" / split / f"{name}.jpg"
                image.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(arguments.voc / "JPEGImages" / image.name, image)
                write(arguments.voc, name, arguments.out / kind, split)
            print(f"{arguments.out / kind}: {len(names)} images in {split}")
    for suffix, boxes, masks in (("", BOXES, MASKS), ("_naive", (*BOXES, *_others(BOXES)), (*MASKS, *_others(MASKS)))):
        listed = json.dumps(dict(enumerate(boxes)))
        (arguments.out / "boxes" / f"data{suffix}.yaml").write_text(
            f"train: images/train\nval: images/val\nnames: {listed}\n"
        )
        lines = [f"{name}: {value}\n" for value, name in enumerate(("background", *masks))]
        (arguments.out / "masks" / f"classes{suffix}.txt").write_text("".join(lines) + "void: 255\n")


def write_boxes(voc: Path, name: str, folder: Path, split: str) -> None:
    """Write the boxes of BOXES as a label file: class, and centre and size as fractions of the image's."""
    annotation = ElementTree.parse(voc / "Annotations" / f"{name}.xml").getroot()
    size = [float(annotation.findtext(f"size/{key}")) for key in ("width", "height")]
    lines = []
    for item in annotation.findall("object"):
        if item.findtext("name") in BOXES:
            x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
            # VOC's corners are 1-based and inclusive: pixel 1 covers 0..1.
            sides = [(x1 - 1 + x2) / 2, (y1 - 1 + y2) / 2, x2 - x1 + 1, y2 - y1 + 1]
            fractions = [value / size[place % 2] for place, value in enumerate(sides)]
            lines.append(" ".join([str(BOXES.index(item.findtext("name"))), *(f"{value:.6f}" for value in fractions)]))
    file = folder / "labels" / split / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def write_masks(voc: Path, name: str, folder: Path, split: str) -> None:
    """Write the pixels of MASKS as values from 1 on, other animals as background, and what is no animal as void."""
    with Image.open(voc / "SegmentationClass" / f"{name}.png") as image:
        values = np.asarray(image)
    table = np.full(256, 255, np.uint8)
    table[[0, *VOC_VALUES.values()]] = 0
    table[[VOC_VALUES[label] for label in MASKS]] = range(1, len(MASKS) + 1)
    file = folder / "masks" / split / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(table[values]).save(file)


def _others(labels: tuple[str, ...]) -> list[str]:
    return [name for name in ANIMALS if name not in labels]


if __name__ == "__main__":
    main()
