"""Pixel maps beside COCO instances: values that are category ids, or these less one."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multas_ray.data.pillow import encode
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.errors import UserError
from multas_ray.formats import coco
from multas_ray.formats.source import Source
from tests.support.shared import shared_path

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 30, "name": "road", "isthing": 0}]
DOG = {"id": 1, "image_id": 7, "category_id": 18, "bbox": [4, 5, 10, 8], "iscrowd": 0,
       "segmentation": [[4, 5, 14, 5, 14, 13, 4, 13]]}  # fmt: skip


def pixel_map(values: dict[str, int]) -> np.ndarray:
    """A map of an image of 40 x 30: a dog on a road, void above."""
    numbers = np.full((30, 40), values["void"], np.uint8)
    numbers[15:], numbers[5:13, 4:14] = values["road"], values["dog"]
    return numbers


def source(folder: Path, numbers: np.ndarray | Image.Image, annotations: Any = (DOG,), **options: Any) -> Source:
    """The source of one image, its boxes, and its pixel map."""
    for name in ("train2017", "maps"):
        (folder / name).mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "train2017" / "7.jpg")
    picture = Image.fromarray(numbers) if isinstance(numbers, np.ndarray) else numbers
    (folder / "maps" / "7.png").write_bytes(encode(picture, "PNG"))
    file = folder / "instances.json"
    images = [{"id": 7, "file_name": "7.jpg", "height": 30, "width": 40}]
    file.write_text(json.dumps({"images": images, "annotations": list(annotations), "categories": CATEGORIES}))
    places = {"images": folder / "train2017", "annotations": file, "split": "train", "stuff": folder / "maps"}
    return coco.read(coco.Options(**places, **options))


def read(source: Source) -> Row | Reject:
    """The one row of a source."""
    [split] = source.splits.values()
    [row] = [pickle.loads(pickle.dumps(split.read))(item) for item in split.items]
    return row


def values_of(row: Row | Reject) -> list[int]:
    """Mask values of the void, the road and the dog."""
    assert isinstance(row, Row), row
    assert row.mask is not None
    return [int(row.mask[0, 0]), int(row.mask[20, 0]), int(row.mask[8, 8])]


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_values_are_category_ids(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(pixel_map({"void": 255, "road": 30, "dog": 18}))
    if mode == "P":
        picture.putpalette(bytes(range(256)) * 3)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
    found = source(tmp_path, picture)
    assert found.classes == {"det": ["person", "dog", "road"], "seg": ["person", "dog", "road"]}
    row = read(found)
    assert values_of(row) == [255, 2, 1]
    assert isinstance(row, Row)
    assert (row.boxes.tolist(), row.labels.tolist(), row.task_mask) == ([[4, 5, 14, 13]], [1], "both")


def test_values_may_be_ids_less_one(tmp_path: Path) -> None:
    """As in stuffthingmaps: read as ids, these would be other classes; here they are asked about."""
    numbers = pixel_map({"void": 255, "road": 29, "dog": 17})
    assert values_of(read(source(tmp_path, numbers, stuff_values="id-1"))) == [255, 2, 1]
    refused = read(source(tmp_path, numbers))
    assert isinstance(refused, Reject)
    assert (refused.reason, "17, 29" in refused.detail) == ("unknown class", True)
    assert "--stuff-values id-1" in refused.detail


def test_zero_is_void_where_values_are_ids_and_a_category_where_they_are_less(tmp_path: Path) -> None:
    numbers = pixel_map({"void": 0, "road": 30, "dog": 18})
    assert values_of(read(source(tmp_path, numbers))) == [255, 2, 1]
    numbers = pixel_map({"void": 0, "road": 29, "dog": 17})
    assert values_of(read(source(tmp_path, numbers, stuff_values="id-1"))) == [0, 2, 1]


def test_chosen_classes_are_of_both_lists(tmp_path: Path) -> None:
    numbers = pixel_map({"void": 255, "road": 30, "dog": 18})
    found = source(tmp_path, numbers, classes=["road", "person"])
    assert found.classes == {"det": ["road", "person"], "seg": ["road", "person"]}
    assert values_of(read(found)) == [255, 0, 255]


def test_pixels_are_annotated_where_no_object_is(tmp_path: Path) -> None:
    numbers = pixel_map({"void": 255, "road": 30, "dog": 18})
    row = read(source(tmp_path, numbers, annotations=[DOG | {"image_id": 7, "segmentation": []}]))
    assert values_of(row) == [255, 2, 1]
    empty = read(source(tmp_path, numbers, annotations=[], empty="unlabelled"))
    assert isinstance(empty, Row)
    assert (empty.task_mask, values_of(empty)) == ("seg", [255, 2, 1])


def test_maps_that_cannot_be_used_reject_their_image(tmp_path: Path) -> None:
    for picture, reason in [
        (Image.new("RGB", (40, 30)), "broken mask"),
        (Image.new("L", (41, 30)), "mask of another size"),
    ]:
        row = read(source(tmp_path, picture))
        assert isinstance(row, Reject)
        assert (row.image_id, row.reason) == ("7", reason)
    found = source(tmp_path, pixel_map({"void": 255, "road": 30, "dog": 18}))
    (tmp_path / "maps" / "7.png").unlink()
    row = read(found)
    assert isinstance(row, Reject)
    assert row.reason == "missing mask"


@pytest.mark.parametrize(("stuff_values", "shift"), [("id", 0), ("id-1", 1)])
def test_real_instances_have_the_names_of_coco_stuff(tmp_path: Path, stuff_values: str, shift: int) -> None:
    root = shared_path("data", "coco-mini")
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        numbers = np.full((image["height"], image["width"]), 157 - shift, np.uint8)  # sky-other
        numbers[-20:], numbers[:5] = 182 - shift, 255  # wood
        Image.fromarray(numbers).save(tmp_path / Path(image["file_name"]).with_suffix(".png"))
    places = {"images": root / "val2017", "annotations": file, "split": "val", "stuff": tmp_path}
    found = coco.read(coco.Options(**places, stuff_values=stuff_values))
    assert len(found.classes["det"]) == 80
    names = found.classes["seg"]
    assert (names[0], names[79], names[80]) == ("person", "toothbrush", "banner")
    assert names[171:] == (["other"] if stuff_values == "id" else [])
    split = found.splits["val"]
    for item in split.items[:3]:
        row = split.read(item)
        assert isinstance(row, Row)
        assert row.mask is not None
        assert [names[row.mask[place, 0]] for place in (10, -1)] == ["sky-other", "wood"]
        assert (row.mask[:5] == 255).all()
    chosen = coco.read(coco.Options(**places, stuff_values=stuff_values, classes=["wood", "dog"]))
    assert chosen.classes == {"det": ["dog"], "seg": ["wood", "dog"]}
    with pytest.raises(UserError, match="no class 'timber'"):
        coco.read(coco.Options(**places, classes=["timber"]))
