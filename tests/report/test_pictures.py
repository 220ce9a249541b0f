"""What is drawn where, in which colour: tints, outlines, hatches, boxes, captions, and the layout of grids."""

import io

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from multas_ray.report.pictures import (
    GAP,
    MASK_ALPHA,
    STRIP,
    Palette,
    Picture,
    captioned,
    color,
    grid,
    legend,
    overlay,
    picture_size,
    with_legend,
)

GREY = 100
OBJECTS = Palette(["cat", "dog"], ["background", "cat", "dog"])


def plain(height: int = 200, width: int = 300) -> torch.Tensor:
    """Of a size that is drawn as it is."""
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def at(picture: Picture, row: int, column: int) -> tuple[int, ...]:
    return tuple(picture.pixels[:, row, column].tolist())


def test_mask_pixels_take_their_class_colour_and_background_stays() -> None:
    mask = torch.zeros(200, 300, dtype=torch.uint8)
    mask[20:60, 20:60] = 2
    picture = overlay(plain(), OBJECTS, mask=mask)
    tint = GREY * (1 - MASK_ALPHA) + torch.tensor(OBJECTS.colors["dog"]) * MASK_ALPHA
    torch.testing.assert_close(picture.pixels[:, 40, 40].float(), tint, atol=1.5, rtol=0)
    assert at(picture, 20, 20) == OBJECTS.colors["dog"], "the region's outline"
    outside = torch.ones(200, 300, dtype=torch.bool)
    outside[20:60, 20:60] = False
    assert (picture.pixels[:, outside] == GREY).all()
    assert picture.classes == {"dog"}


def test_a_name_has_one_colour_in_boxes_and_masks_whatever_the_lists() -> None:
    palette = Palette(["ring", "cat"], ["sky", "cat", "ring"])
    mask = torch.zeros(200, 300, dtype=torch.uint8)
    mask[:, 100:200], mask[:, 200:] = 1, 2
    painted = overlay(plain(), palette, mask=mask)
    assert painted.classes == {"sky", "cat", "ring"}
    for label, (name, column) in enumerate((("ring", 200), ("cat", 100))):
        box = torch.tensor([[50.0, 50.0, 250.0, 150.0]])
        boxed = overlay(plain(), palette, box, [label], [name])
        assert at(boxed, 150, 150) == at(painted, 100, column) == palette.colors[name]
    assert at(painted, 100, 50) != (GREY,) * 3, "a first class that is no background is one like others"
    assert len(set(palette.colors.values())) == 3
    assert Palette(["ring", "cat"], []).colors["cat"] == palette.colors["cat"], "also where one task is missing"


def test_ignored_pixels_are_hatched_in_grey() -> None:
    mask = torch.zeros(200, 300, dtype=torch.uint8)
    mask[:, 150:] = 255
    picture = overlay(plain(), Palette([], ["background", "cat"]), mask=mask)
    assert (picture.pixels[:, :, :150] == GREY).all()
    values = picture.pixels[:, :, 150:].unique().tolist()
    assert len(values) == 2
    assert values[0] == GREY
    assert values[1] > 200
    assert not picture.classes


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((96, 96), (288, 288)), ((40, 60), (200, 300)), ((375, 500), (375, 500)), ((3000, 4000), (480, 640))],
)
def test_pictures_keep_the_aspect_and_are_neither_tiny_nor_huge(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert picture_size(*size) == drawn


@pytest.mark.parametrize("factor", [5, 0.1])
def test_boxes_and_masks_are_scaled_with_their_image(factor: float) -> None:
    height, width = round(200 / factor), round(300 / factor)
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[: height // 2] = 1
    box = torch.tensor([[50.0, 20.0, 250.0, 180.0]]) / factor
    picture = overlay(plain(height, width), OBJECTS, box, [1], ["dog"], mask, longest=300)
    assert picture.pixels.shape == (3, 200, 300)
    assert at(picture, 150, 50) == at(picture, 150, 250) == OBJECTS.colors["dog"]
    assert at(picture, 99, 10) == OBJECTS.colors["cat"], "the outline of the mask"
    assert at(picture, 150, 150) == (GREY,) * 3


def test_the_first_box_is_on_top() -> None:
    boxes = torch.tensor([[50.0, 50.0, 150.0, 150.0], [50.0, 50.0, 150.0, 150.0]])
    picture = overlay(plain(), OBJECTS, boxes, [1, 0], ["dog 0.73", "cat 0.31"])
    assert at(picture, 150, 100) == OBJECTS.colors["dog"]
    assert at(picture, 51, 51) == OBJECTS.colors["dog"], "the caption's paper"
    assert picture.classes == {"cat", "dog"}


def test_captions_at_the_border_stay_in_the_picture() -> None:
    boxes = torch.tensor([[280.0, 180.0, 340.0, 220.0]])
    picture = overlay(plain(), OBJECTS, boxes, [0], ["person 0.55"])
    paper = (picture.pixels == torch.tensor(OBJECTS.colors["cat"], dtype=torch.uint8)[:, None, None]).all(0)
    rows, columns = paper.nonzero(as_tuple=True)
    assert rows.max() <= 199
    assert columns.min() < 260, "moved to the left of its box"


@pytest.mark.parametrize("boxes", [None, torch.zeros(0, 4)], ids=["unknown", "none"])
def test_without_boxes(boxes: torch.Tensor | None) -> None:
    picture = overlay(plain(), OBJECTS, boxes)
    assert (picture.pixels == GREY).all()
    assert with_legend(picture, OBJECTS).shape == picture.pixels.shape


def test_colours_are_distinct() -> None:
    colors = torch.tensor([color(index) for index in range(1, 21)]).float()
    assert (torch.cdist(colors, colors) + 1000 * torch.eye(20)).min() > 40


def has(pixels: torch.Tensor, wanted: tuple[int, int, int]) -> bool:
    return bool((pixels == torch.tensor(wanted, dtype=torch.uint8)[:, None, None]).all(0).any())


def test_a_legend_stands_beneath_and_names_what_is_in_the_picture() -> None:
    picture = with_legend(Picture(plain(50, 30), frozenset({"dog"})), OBJECTS)
    assert picture.shape[1] == 50 + STRIP
    assert picture.shape[2] > 30, "wide enough for the name"
    assert (picture[:, :50, :30] == GREY).all()
    assert (picture[:, :50, 30:] == 255).all()
    assert has(picture[:, 50:], OBJECTS.colors["dog"])
    assert not has(picture[:, 50:], OBJECTS.colors["cat"])


def test_grid_of_ragged_rows_of_unlike_pictures() -> None:
    cat = frozenset({"cat"})
    wide = captioned(Picture(plain(50, 80), cat), "a caption far too long for its picture")
    rows = [[Picture(plain(40, 60), cat), Picture(plain(20, 30))], [wide]]
    png = grid(rows, ["left", "right"], OBJECTS)
    picture = pil_to_tensor(Image.open(io.BytesIO(png)))
    assert picture.shape == (3, STRIP + 40 + STRIP + 50 + 3 * GAP + STRIP, 80 + 30 + 3 * GAP)
    assert (picture[:, STRIP + GAP : STRIP + GAP + 20, 80 + 2 * GAP : 80 + 2 * GAP + 30] == GREY).all()
    assert has(picture, OBJECTS.colors["cat"]), "the key"
    assert not has(picture, OBJECTS.colors["dog"]), "of classes that are in no picture"


def test_grid_of_nothing() -> None:
    picture = pil_to_tensor(Image.open(io.BytesIO(grid([], [], OBJECTS))))
    assert picture.shape == (3, GAP, GAP)


def test_legend_wraps() -> None:
    palette = Palette([f"class {index}" for index in range(20)], [])
    assert legend(palette, palette.colors, 200).shape[1] > legend(palette, palette.colors, 2000).shape[1] == STRIP
