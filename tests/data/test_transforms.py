import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from multas_ray.config import AugmentConfig
from multas_ray.data.geometry import View
from multas_ray.data.image import EncodedImage
from multas_ray.data.pillow import encode
from multas_ray.data.transforms import LUMA, Augment, box_crop, change_colours
from multas_ray.tasks.segmentation.rows import IGNORE


def sample(annotated: bool = True, scale: int = 1, format: str = "PNG") -> dict:
    """A 60 x 80 image, or one larger by a factor, with one white rectangle, its box, and its mask."""
    image = np.zeros((60 * scale, 80 * scale, 3), np.uint8)
    image[20 * scale : 44 * scale, 10 * scale : 50 * scale] = 255
    parts = {"image": EncodedImage(encode(Image.fromarray(image), format), 60 * scale, 80 * scale)}
    if annotated:
        parts |= {
            "boxes": np.array([[10, 20, 50, 44]], np.float32) * scale,
            "labels": np.array([2]),
            "difficult": np.array([False]),
            "mask": (image[..., 0] > 0).astype(np.uint8),
        }
    return parts


@pytest.mark.parametrize(("scale", "format"), [(1, "PNG"), (1, "JPEG"), (7, "JPEG"), (16, "JPEG"), (16, "PNG")])
@pytest.mark.parametrize("seed", range(40))
def test_box_mask_and_pixels_stay_together(seed, scale, format):
    """The object is the only bright thing; its box and its mask go where its pixels go, however small it is decoded."""
    out = Augment(AugmentConfig(photometric=False, zoom_out=0.5, crop=0.8))(sample(True, scale, format), 96, seed)
    assert out["image"].shape == (3, 96, 96)
    assert out["mask"].shape == (96, 96)
    mask = torch.from_numpy(out["mask"])
    inside, padding = mask == 1, mask == IGNORE
    brightness = out["image"].float().mean(0)
    # Interpolated pixels on the border are neither bright nor dark.
    border = 0.06 * inside.sum()
    assert (brightness > 200)[~inside & ~padding].sum() <= border, "the mask covers the object's pixels"
    assert (brightness < 55)[inside].sum() <= border, "and no others"
    # A crop keeps the centre of one box at least, and there is one.
    [box] = torch.from_numpy(out["boxes"])
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
    assert (first["mask"] == second["mask"]).all()
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    assert not torch.equal(first["image"], augment(sample(), 64, 12)["image"])


def test_padding_is_ignored_by_segmentation():
    out = Augment(AugmentConfig(photometric=False, zoom_out=1.0, crop=0.0, flip=0.0))(sample(), 64, 5)
    assert set(np.unique(out["mask"]).tolist()) == {0, 1, IGNORE}


def test_an_unannotated_image_is_cropped_too():
    out = Augment(AugmentConfig(zoom_out=0, crop=1.0))(sample(annotated=False), 64, 1)
    assert out.keys() == {"image", "geometry"}
    assert out["image"].shape == (3, 64, 64)


def test_crops_around_boxes_are_drawn_as_torchvision_draws_them():
    """The same distribution, found for all tries at once."""
    boxes = np.array([[10, 20, 50, 44], [5, 5, 20, 60], [60, 30, 80, 50]], np.float32)
    view, count = View(-20, -10, 120, 90), 3000
    theirs = v2.RandomIoUCrop(min_scale=0.4)
    canvas = tv_tensors.Image(torch.empty((3, view.height, view.width), device="meta"))
    moved = torch.from_numpy(boxes + np.array([20, 10, 20, 10], np.float32))
    moved = tv_tensors.BoundingBoxes(moved, format="XYXY", canvas_size=(view.height, view.width))
    torch.manual_seed(0)
    ours = np.array([box_crop(view, boxes)[:4] for _ in range(count)])
    whole = {"left": 0, "top": 0, "width": 120, "height": 90}
    crops = [theirs.make_params([canvas, moved]) or whole for _ in range(count)]
    expected = np.array([[c["left"] - 20, c["top"] - 10, c["width"], c["height"]] for c in crops])
    for column in range(4):
        for level in (0.1, 0.25, 0.5, 0.75, 0.9):
            # Shares of 3000 draws differ by 0.013 (one standard deviation) or less.
            edge = np.quantile(expected[:, column], level)
            assert abs((ours[:, column] <= edge).mean() - (expected[:, column] <= edge).mean()) < 0.05
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = ours[:, None, :2], ours[:, None, :2] + ours[:, None, 2:]
    assert ((low < centres) & (centres < high)).all(axis=2).any(axis=1).all(), "the centre of some box is seen"
    assert ((ours[:, :2] >= [-20, -10]) & (ours[:, :2] + ours[:, 2:] <= [100, 80])).all()


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
    changed = change_colours(image.as_subclass(torch.Tensor), *changes)
    assert (changed.int() - adjust(image).int()).abs().max() <= 1


def test_hue_turns_colours_and_leaves_grey_and_brightness():
    grey = torch.full((3, 4, 4), 90, dtype=torch.uint8)
    assert torch.equal(change_colours(grey, 0, 0, 0.3, 0), grey)
    red = tv_tensors.Image(torch.tensor([150, 80, 80], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4))
    turned = change_colours(red.as_subclass(torch.Tensor), 0, 0, 1 / 3, 0)
    # A third of a turn makes red green, or blue, about as torchvision's, which turns in HSV.
    theirs = v2.functional.adjust_hue(red, 1 / 3)
    assert (turned[:, 0, 0].argmax(), theirs[:, 0, 0].argmax()) == (1, 1)
    assert abs(float(LUMA @ turned[:, 0, 0].float()) - float(LUMA @ red[:, 0, 0].float())) < 1
