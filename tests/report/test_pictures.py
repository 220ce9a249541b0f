"""What is drawn where: tints, outlines, hatches, boxes, captions, and the layout of grids."""

import io

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from multas_ray.report.pictures import GAP, MASK_ALPHA, STRIP, captioned, color, grid, legend, overlay

GREY = 100


def plain(height: int = 40, width: int = 60) -> torch.Tensor:
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def test_mask_pixels_take_their_class_colour_and_background_stays() -> None:
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[10:30, 10:30] = 2
    picture = overlay(plain(), mask=mask)
    tint = GREY * (1 - MASK_ALPHA) + torch.tensor(color(2)) * MASK_ALPHA
    torch.testing.assert_close(picture[:, 40, 40].float(), tint, atol=1.5, rtol=0)
    assert tuple(picture[:, 20, 20].tolist()) == color(2), "the region's outline"
    outside = torch.ones(80, 120, dtype=torch.bool)
    outside[20:60, 20:60] = False
    assert (picture[:, outside] == GREY).all()


def test_ignored_pixels_are_hatched_in_grey() -> None:
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[:, 30:] = 255
    picture = overlay(plain(), mask=mask)
    assert (picture[:, :, :60] == GREY).all()
    values = picture[:, :, 60:].unique().tolist()
    assert len(values) == 2
    assert values[0] == GREY
    assert values[1] > 200


def test_boxes_are_scaled_and_coloured_as_their_pixel_class() -> None:
    picture = overlay(plain(), torch.tensor([[5.0, 5.0, 50.0, 35.0]]), labels=[3], scale=3)
    assert picture.shape == (3, 120, 180)
    assert tuple(picture[:, 60, 15].tolist()) == color(4)
    assert (picture[:, 60, 60] == GREY).all()


def test_captions_at_the_border_stay_in_the_picture() -> None:
    boxes = torch.tensor([[55.0, 36.0, 70.0, 45.0]])
    picture = overlay(plain(), boxes, ["person 0.55"], [0])
    paper = (picture == torch.tensor(color(1), dtype=torch.uint8)[:, None, None]).all(0)
    rows, columns = paper.nonzero(as_tuple=True)
    assert rows.max() <= 79
    assert columns.min() < 60, "moved to the left of its box"


@pytest.mark.parametrize("boxes", [None, torch.zeros(0, 4)], ids=["unknown", "none"])
def test_without_boxes(boxes: torch.Tensor | None) -> None:
    assert (overlay(plain(), boxes, [], []) == GREY).all()


def test_colours_are_distinct() -> None:
    colors = torch.tensor([color(index) for index in range(1, 21)]).float()
    assert (torch.cdist(colors, colors) + 1000 * torch.eye(20)).min() > 40


def test_grid_of_ragged_rows_of_unlike_pictures() -> None:
    rows = [[plain(40, 60), plain(20, 30)], [captioned(plain(50, 80), "a caption far too long for its picture")]]
    png = grid(rows, ["left", "right"], classes=["background", "cat"])
    picture = pil_to_tensor(Image.open(io.BytesIO(png)))
    assert picture.shape == (3, STRIP + 40 + STRIP + 50 + 3 * GAP + STRIP, 80 + 30 + 3 * GAP)
    assert (picture[:, STRIP + GAP : STRIP + GAP + 20, 80 + 2 * GAP : 80 + 2 * GAP + 30] == GREY).all()
    assert (picture == torch.tensor(color(1), dtype=torch.uint8)[:, None, None]).all(0).any(), "the key"


def test_grid_of_nothing() -> None:
    picture = pil_to_tensor(Image.open(io.BytesIO(grid([], []))))
    assert picture.shape == (3, GAP, GAP)


def test_legend_wraps() -> None:
    names = ["background", *(f"class {index}" for index in range(20))]
    assert legend(names, 200).shape[1] > legend(names, 2000).shape[1] == STRIP
