"""Benchmark of backbones: parameters, multiplications and time of a network for both tasks with each."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.timing import alternate
from multas_ray.config import ModelConfig
from multas_ray.model.network import MultiTaskNet, count_gmacs, count_parameters

SIZE = 256
BATCH = 2
CLASSES = 20
NAMES = (
    "resnet18",
    "resnet50",
    "efficientnet_lite0",
    "swin_t",
    "timm/mobilenetv4_conv_medium",
    "timm/hgnetv2_b2",
    "timm/convnext_tiny.dinov3_lvd1689m",
    "timm/vit_small_patch16_dinov3.lvd1689m",
    "timm/vit_base_patch16_dinov3.lvd1689m",
)
"""Backbones that are measured, if no others are named."""


def measure_backbones(names: Sequence[str] = NAMES) -> dict[str, dict[str, float]]:
    """Measure the network with each backbone, without weights, in float32.

    Returns:
        By name: `million_parameters`; `gmacs`, 10^9 multiplications of an image's forward pass; `forward_ms` and
        `train_ms`, milliseconds an image of a forward pass, and of one with its backward pass.
    """
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    networks = {name: _network(name) for name in names}
    forward = alternate({name: _forward(network, images) for name, network in networks.items()}, 1)
    train = alternate({name: _train(network, images) for name, network in networks.items()}, 1)
    return {
        name: {
            "million_parameters": count_parameters(network) / 1e6,
            "gmacs": count_gmacs(network, SIZE),
            "forward_ms": 1000 * forward[name] / BATCH,
            "train_ms": 1000 * train[name] / BATCH,
        }
        for name, network in networks.items()
    }


def _network(name: str) -> MultiTaskNet:
    objects = [str(number) for number in range(CLASSES)]
    config = ModelConfig(backbone=name, pretrained=False)
    return MultiTaskNet(config, {"det": objects, "seg": ["background", *objects]})


def _forward(network: MultiTaskNet, images: Tensor) -> Callable[[], object]:
    def run() -> object:
        network.eval()
        with torch.inference_mode():
            return network(images)

    return run


def _train(network: MultiTaskNet, images: Tensor) -> Callable[[], object]:
    def run() -> None:
        network.train()
        outputs = network(images)
        sums = outputs["det"].cls.sum() + outputs["det"].box.sum() + outputs["seg"].sum()
        sums.backward()
        network.zero_grad(set_to_none=True)

    return run
