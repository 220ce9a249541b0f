import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from multas_ray.config import AugmentConfig
from multas_ray.data.transforms import LUMA, Augment, change_colours
from multas_ray.tasks.segmentation.rows import IGNORE


def sample(annotated: bool = True) -> dict:
    """A 60 x 80 image with one white rectangle, its box, and its mask."""
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, 20:44, 10:50] = 255
    parts = {"image": tv_tensors.Image(image)}
    if annotated:
        parts |= {
            "boxes": tv_tensors.BoundingBoxes([[10.0, 20.0, 50.0, 44.0]], format="XYXY", canvas_size=(60, 80)),
            "labels": torch.tensor([2]),
            "difficult": torch.tensor([False]),
            "mask": tv_tensors.Mask((image[0] > 0).to(torch.uint8)),
        }
    return parts


@pytest.mark.parametrize("seed", range(40))
def test_box_mask_and_pixels_stay_together(seed):
    """The object is the only bright thing; its box and its mask go where its pixels go."""
    out = Augment(AugmentConfig(photometric=False, zoom_out=0.5, crop=0.8))(sample(), 96, seed)
    assert out["image"].shape == (3, 96, 96)
    assert out["mask"].shape == (96, 96)
    inside, padding = out["mask"] == 1, out["mask"] == IGNORE
    brightness = out["image"].float().mean(0)
    # Interpolated pixels on the border are neither bright nor dark.
    border = 0.06 * inside.sum()
    assert (brightness > 200)[~inside & ~padding].sum() <= border, "the mask covers the object's pixels"
    assert (brightness < 55)[inside].sum() <= border, "and no others"
    # A crop keeps the centre of one box at least, and there is one.
    [box] = out["boxes"]
    assert out["labels"].tolist() == [2]
    assert out["difficult"].tolist() == [False]
    rows, columns = torch.where(inside)
    tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    assert (box - tight).abs().max() <= 2.5


def test_the_seed_decides_everything():
    augment = Augment(AugmentConfig())
    torch.manual_seed(1)
    first = augment(sample(), 64, 11)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = augment(sample(), 64, 11)
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["mask"], second["mask"])
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    assert not torch.equal(first["image"], augment(sample(), 64, 12)["image"])


def test_padding_is_ignored_by_segmentation():
    out = Augment(AugmentConfig(photometric=False, zoom_out=1.0, crop=0.0, flip=0.0))(sample(), 64, 5)
    assert set(out["mask"].unique().tolist()) == {0, 1, IGNORE}


def test_an_unannotated_image_is_cropped_too():
    out = Augment(AugmentConfig(zoom_out=0, crop=1.0))(sample(annotated=False), 64, 1)
    assert out.keys() == {"image", "geometry"}
    assert out["image"].shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("changes", "adjust"),
    [
        ((0.2, 0, 0, 0), lambda image: v2.functional.adjust_brightness(image, 1.2)),
        ((0, -0.4, 0, 0), lambda image: v2.functional.adjust_saturation(image, 0.6)),
        ((0, 0, 0, 0.4), lambda image: v2.functional.adjust_contrast(image, 1.4)),
        ((0, 0, 0, -0.4), lambda image: v2.functional.adjust_contrast(image, 0.6)),
    ],
    ids=["brighter", "paler", "more contrast", "less contrast"],
)
def test_colours_change_as_torchvision_s(changes, adjust):
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.randint(40, 160, (3, 40, 50), dtype=torch.uint8))
    changed = change_colours(image, *changes)
    assert isinstance(changed, tv_tensors.Image)
    assert (changed.int() - adjust(image).int()).abs().max() <= 1


def test_hue_turns_colours_and_leaves_grey_and_brightness():
    grey = torch.full((3, 4, 4), 90, dtype=torch.uint8)
    assert torch.equal(change_colours(tv_tensors.Image(grey), 0, 0, 0.3, 0), grey)
    red = tv_tensors.Image(torch.tensor([150, 80, 80], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4))
    turned = change_colours(red, 0, 0, 1 / 3, 0)
    # A third of a turn makes red green, or blue, about as torchvision's, which turns in HSV.
    theirs = v2.functional.adjust_hue(red, 1 / 3)
    assert (turned[:, 0, 0].argmax(), theirs[:, 0, 0].argmax()) == (1, 1)
    assert abs(float(LUMA @ turned[:, 0, 0].float()) - float(LUMA @ red[:, 0, 0].float())) < 1
