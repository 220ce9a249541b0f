"""Backbones of the library timm, by name: `timm/NAME`, such as timm/convnext_tiny.dinov3_lvd1689m.

Maps are chosen by their stride, never by their place: families begin at stride 2 or 4. A plain ViT has one stride; its
last map becomes a pyramid.
"""

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multas_ray.errors import UserError, first_line, quoted
from multas_ray.model.backbones import Backbone, BackboneSettings, replace_modules

STRIDES = (8, 16, 32)
TRIED = (128, 192)
"""Height and width in pixels of an input by which a backbone is tried."""
LEAST_LOADED = 0.5
"""Least share of a network's weights that a file of weights must have."""
FREE = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause")
"""Licences of weights that ask for no more than the code's own."""


class FeatureBackbone(Backbone):
    """Feature maps of a network of timm."""

    def __init__(self, network: Any, mean: Any, std: Any) -> None:
        """Take a network that was made with `features_only`, for the strides 8, 16, 32."""
        super().__init__([], tuple(network.feature_info.channels()), tuple(mean), tuple(std))
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps in (B, C, H, W); see `Backbone.forward`."""
        maps = []
        for channels, feature in zip(self.channels, self.network(x), strict=True):
            # Swin and its like compute in (B, H, W, C).
            maps.append(feature if feature.shape[1] == channels else feature.permute(0, 3, 1, 2).contiguous())
        return maps


class PlainBackbone(Backbone):
    """A plain ViT whose last map becomes maps of strides 8, 16, 32 (Li et al., ECCV 2022).

    The finest is the map enlarged by a transposed convolution, the coarsest the map halved by max-pooling.
    """

    PATCH = 16
    """Stride of its map in pixels of the input. The input of a ViT of other patches is resized to as many of them."""

    def __init__(self, network: Any, mean: Any, std: Any) -> None:
        """Take a ViT of timm that was made with `dynamic_img_size`."""
        width = network.embed_dim
        super().__init__([], (width // 2, width, width), tuple(mean), tuple(std))
        self.network = network
        self.patch = network.patch_embed.patch_size[0]
        self.finer = nn.Sequential(nn.ConvTranspose2d(width, width // 2, 2, 2), nn.GroupNorm(1, width // 2), nn.GELU())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps in (B, C, H, W); see `Backbone.forward`."""
        if self.patch != self.PATCH:
            sides = [side * self.patch // self.PATCH for side in x.shape[2:]]
            x = F.interpolate(x, sides, mode="bilinear", antialias=True)
        [feature] = self.network.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        return [self.finer(feature), feature, F.max_pool2d(feature, 2)]


def timm_backbone(name: str, settings: BackboneSettings) -> Backbone:
    """Build a backbone of timm; see `backbones.build_backbone`."""
    timm = _package()
    own = name.removeprefix("timm/")
    if not timm.is_model(own):
        architecture = own.partition(".")[0]
        near = difflib.get_close_matches(architecture, timm.list_models(), 5, 0.5)
        raise UserError(f"model.backbone: timm has no model {quoted(own)}; near are {', '.join(near) or 'none'}")
    strides = strides_of(timm, own)
    plain = len(set(strides)) == 1
    misfit = UserError(
        f"model.backbone: {name} has no maps of the strides 8, 16 and 32 (it has {strides or 'none'}), and is no plain "
        "ViT; those of the families convnext, mobilenetv4, efficientnet, hgnetv2, resnet and swin have"
    )
    if not plain and not set(STRIDES) <= set(strides):
        raise misfit
    # The last map of a stride, where there are several.
    places = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES if stride in strides]
    shape: dict[str, Any] = {"num_classes": 0} if plain else {"features_only": True, "out_indices": places}
    network = _attempt(name, settings, lambda: _create(timm, own, settings, shape))
    if settings.pretrained and settings.weights is not None:
        _check_weights(name, network, settings.weights)
    if plain and not hasattr(network, "patch_embed"):
        raise misfit
    about = timm.get_pretrained_cfg(own)
    # No stochastic depth: it would make gradients depend on how a batch is split over workers.
    replace_modules(network, timm.layers.DropPath, lambda _: nn.Identity())
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0  # attention reads it
    network = _with_norm(timm, name, network, settings.norm)
    kind = PlainBackbone if plain else FeatureBackbone
    return _tried(name, kind(network, about.mean, about.std))


def _tried(name: str, backbone: Backbone) -> Backbone:
    """Return a backbone whose maps are the input divided by their strides; refuse another, such as one without padding.

    Raises:
        UserError: they are not, or it cannot take an input of another size than that of its pretraining.
    """
    height, width = TRIED
    try:
        # Not inference_mode: what a network keeps of its first images, training could not use.
        with torch.no_grad():
            found = [tuple(each.shape[1:]) for each in backbone.eval()(torch.zeros(1, 3, height, width))]
    except Exception as error:  # any of a thousand networks may raise anything
        raise UserError(f"model.backbone: {name} cannot be a backbone ({first_line(error)})") from None
    expected = [(c, height // s, width // s) for c, s in zip(backbone.channels, STRIDES, strict=True)]
    if found != expected:
        raise UserError(f"model.backbone: {name} has maps {found} of {height} x {width} pixels; needed are {expected}")
    return backbone.train()


def weights_licence(name: str) -> str | None:
    """Return the licence of a backbone's pretrained weights where it asks for more than the code's; else None."""
    licence = _package().get_pretrained_cfg(name.removeprefix("timm/")).license
    return None if licence is None or licence.lower() in FREE else licence


def _package() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError("model.backbone: timm/… needs the extra 'timm': pip install 'multas-ray[timm]'") from None
    return timm


def strides_of(timm: Any, own: str) -> list[int]:
    """Return the strides of a model's maps, fine to coarse; none where it has no maps."""
    # Without memory for weights, unless a model looks at its own numbers.
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                return list(timm.create_model(own, pretrained=False, features_only=True).feature_info.reduction())
        except Exception as error:
            if "meta" not in str(error):
                break
    return []


def _create(timm: Any, own: str, settings: BackboneSettings, shape: dict[str, Any]) -> Any:
    if settings.pretrained and settings.weights is not None:
        shape = shape | {"pretrained_cfg_overlay": {"file": settings.weights}}
    # Of families that were pretrained at one size, each has its own word for taking others.
    for free in ({"dynamic_img_size": True}, {"strict_img_size": False}) if _is_fixed(timm, own) else ({},):
        try:
            return timm.create_model(own, pretrained=settings.pretrained, **shape, **free)
        except TypeError:
            continue
    raise ValueError("it works at the one size of its pretraining")


def _check_weights(name: str, network: nn.Module, file: str) -> None:
    """Compare the weights of a network with those of the file that it was built from.

    timm leaves what it does not find in a file as it is, random. What it adapts, such as embeddings of positions, may
    differ.

    Raises:
        UserError: less than half of the network's weights are the file's.
    """
    given = {_bytes_digest(tensor) for tensor in safetensors.torch.load_file(file).values()}
    sizes = {True: 0, False: 0}
    for parameter in network.parameters():
        sizes[_bytes_digest(parameter) in given] += parameter.numel()
    share = sizes[True] / sum(sizes.values())
    if share < LEAST_LOADED:
        raise UserError(f"model.weights: {file} has {share:.0%} of the weights of {name}; it is of another network")


def _bytes_digest(tensor: Tensor) -> bytes:
    """Digest a tensor's values as float32, whatever its shape and type."""
    return hashlib.blake2b(tensor.detach().float().contiguous().cpu().numpy().tobytes(), digest_size=16).digest()


def _is_fixed(timm: Any, own: str) -> bool:
    return bool(timm.get_pretrained_cfg(own).fixed_input_size)


def _attempt(name: str, settings: BackboneSettings, build: Callable[[], Any]) -> Any:
    """Build a network; what timm raises is an error of one line."""
    if settings.pretrained and settings.weights is not None and Path(settings.weights).suffix != ".safetensors":
        raise UserError(f"model.weights: {settings.weights}: weights are read from .safetensors files alone")
    try:
        return build()
    except Exception as error:
        if not settings.pretrained:
            raise UserError(f"model.backbone: {name} cannot be built ({first_line(error)})") from None
        origin = settings.weights or "the hub"
        raise UserError(
            f"model.pretrained: the weights of {name} could not be had from {origin} ({first_line(error)}); train "
            "without them by model.pretrained=false"
        ) from None


def _with_norm(timm: Any, name: str, network: nn.Module, norm: str) -> nn.Module:
    """Change the BatchNorms of a network; one without any is left as it is."""
    if norm == "batch" or not any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        return network
    if norm == "group":
        raise UserError(f"model.norm: group, but {name} has batch statistics in its weights; use batch, sync or frozen")
    changed: nn.Module = timm.layers.convert_sync_batchnorm(network) if norm == "sync" else network
    if norm == "frozen":
        changed = timm.layers.freeze_batch_norm_2d(network)
    return changed
