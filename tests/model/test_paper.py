"""The paper's network; its numbers are in tests/golden."""

import pytest
import torch

from multas_ray.config import ModelConfig
from multas_ray.model.network import MultiTaskNet
from multas_ray.tasks.detection.head import cells
from tests.support.networks import by_name

DET, SEG = ("cat", "cow", "dog"), ("background", "cat", "cow", "dog")


def network(**changes: object) -> MultiTaskNet:
    torch.manual_seed(0)
    settings = {"preset": "paper", "backbone": "resnet18", "pretrained": False, "width": 32, "norm": "group"} | changes
    return MultiTaskNet(ModelConfig.model_validate(settings), {"det": DET, "seg": SEG})


def images(size: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("backbone", "neck", "levels", "size"),
    [
        ("resnet18", "fpn", 4, 96),
        ("resnet50", "pafpn", 4, 64),
        ("resnet18", "pafpn", 5, 160),
        ("swin_t", "fpn", 4, 64),
        ("efficientnet_lite0", "fpn", 5, 64),
    ],
)
def test_shapes(backbone: str, neck: str, levels: int, size: int) -> None:
    net = network(backbone=backbone, neck=neck, levels=levels, adapter=24)
    outputs = by_name(net(images(size), features=True))
    sides = [-(-size // (8 * 2**level)) for level in range(levels)]
    count = sum(side**2 for side in sides)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "cls": (2, 6 * count, 3),
        "box": (2, 6 * count, 4),
        "feature": (2, count, 24),
        "seg": (2, 4, size, size),
    }
    assert len(net.anchors(size, size)) == 6 * count
    assert [tuple(level.shape) for level in net.pyramid(images(size))] == [(2, 32, side, side) for side in sides]


def test_norm_follows_the_configuration() -> None:
    for norm, kind in (("batch", torch.nn.BatchNorm2d), ("frozen", torch.nn.GroupNorm), ("group", torch.nn.GroupNorm)):
        neck = network(norm=norm).neck
        layers = [m for m in neck.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.GroupNorm)]
        assert layers
        assert all(isinstance(layer, kind) for layer in layers)


def test_features_are_the_pyramid_s_cells_without_adapters() -> None:
    net = network().eval()
    with torch.inference_mode():
        found = net(images(64), {"det": torch.tensor([1])}, features=True)["det"].feature
        torch.testing.assert_close(found, cells(net.pyramid(images(64)))[1:])


def test_no_rows_leave_every_parameter_a_zero_gradient() -> None:
    net = network(adapter=8)
    outputs = by_name(net(images(64), {}, features=True))
    assert outputs["feature"].shape == (0, 85, 8)
    assert outputs["seg"].shape == (0, 4, 64, 64)
    torch.stack([output.sum() for output in outputs.values()]).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in net.parameters())


def test_starts_at_the_prior() -> None:
    outputs = network(norm="batch")(images(96, 4))
    assert outputs["det"].cls.sigmoid().mean().item() == pytest.approx(0.01, rel=0.5)
