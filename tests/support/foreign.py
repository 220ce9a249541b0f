"""Teachers from outside: callables, as `python:tests.support.foreign:NAME` names them."""

import torch
from torch import Tensor, nn

NAMES = ["puppy", "cat", "lorry"]
"""Their classes: a dog by another name, one that the run has, one that it does not know."""


class OneBox(nn.Module):
    """A detector that finds the same object in every image, and a less sure one on top of it."""

    classes = NAMES

    def __init__(self, device: str) -> None:
        super().__init__()
        self.box = nn.Parameter(torch.tensor([0.1, 0.2, 0.6, 0.9], device=device))

    def forward(self, images: Tensor):
        height, width = images.shape[-2:]
        box = self.box * torch.tensor([width, height, width, height])
        boxes = torch.stack([box, box + 1])
        return [(boxes, torch.tensor([[0.9, 0.1, 0.3], [0.6, 0.2, 0.1]])) for _ in images]


class HalfAndHalf:
    """A segmentation network whose left half is a puppy, whose right half a lorry, in scores that add up to 3."""

    classes = NAMES
    digest = "first"

    def __call__(self, images: Tensor) -> Tensor:
        scores = torch.full((len(images), 3, 10, 20), 0.3)
        scores[:, 0, :, :10] = 2.4
        scores[:, 2, :, 10:] = 2.4
        return scores


def one_box(device: str) -> OneBox:
    return OneBox(device)


def half_and_half(device: str) -> HalfAndHalf:
    return HalfAndHalf()


def unnamed(device: str):
    return lambda images: images


def misshapen(device: str):
    model = HalfAndHalf()
    model.classes = ["cat", "dog"]
    return model


class KnowsScenes:
    """A segmentation network that takes what is brighter than half for the scenes' first class."""

    digest = "1"

    def __init__(self) -> None:
        from multas_ray.formats import scenes

        self.classes = ["background", scenes.CLASSES[0]]

    def __call__(self, images: Tensor) -> Tensor:
        bright = images.float().mean(dim=1, keepdim=True) / 255
        return torch.cat([1 - bright, bright], dim=1)


def knows_scenes(device: str) -> KnowsScenes:
    return KnowsScenes()


def fails_at_once(device: str):
    raise FileNotFoundError("weights.pt is missing")


def fails_on_images(device: str):
    model = HalfAndHalf()
    model.__class__ = type("Failing", (HalfAndHalf,), {"__call__": lambda self, images: 1 / 0})
    return model
