"""Weights of the method's published code (github.com/lhoangan/multas), loaded into a network of the paper preset."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from multas_ray.checkpoint.weights import load_tensors
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet

RENAMED = (
    (r"backbone\.conv1\.", "backbone.stages.0.0."),
    (r"backbone\.bn1\.", "backbone.stages.0.1."),
    (r"backbone\.layer1\.", "backbone.stages.0.3."),
    (r"backbone\.layer2\.", "backbone.stages.0.4."),
    (r"backbone\.layer3\.", "backbone.stages.0.5."),
    (r"backbone\.layer4\.", "backbone.stages.1."),
    (r"neck\.ft_module\.conv1\.", "neck.fuse.0."),
    (r"neck\.ft_module\.conv2\.0\.", "neck.fuse.1."),
    (r"neck\.ft_module\.conv3\.1\.", "neck.context."),
    (r"neck\.pyramid_ext\.", "neck.grow."),
    (r"neck\.lateral_convs\.", "neck.lateral."),
    (r"neck\.fpn_convs\.", "neck.smooth."),
    (r"neck\.downsample_convs\.", "neck.shrink."),
    (r"neck\.pafpn_convs\.", "neck.refine."),
    (r"loc\.", "det_head.box."),
    (r"conf\.", "det_head.cls."),
    (r"dist\.", "adapters."),
    # Between the published head's convolutions there are doublings without weights.
    (r"seghead\.conv\.(\d)\.(\d)\.", lambda match: f"seg_head.rise.{match[1]}.{int(match[2]) // 2}."),
    (r"seghead\.seg\.([123])\.", lambda match: f"seg_head.refine.{int(match[1]) - 1}."),
    (r"seghead\.seg\.4\.", "seg_head.classify."),
)
"""Prefixes of the published names, and their names here. After a prefix only the normalisation's name differs."""
SWIN = ("patch_embed", "relative_position", ".attn.")
"""Parts of names of tensors that only a Swin backbone has."""


def load_reference_state_dict(model: MultiTaskNet, source: str | Path | Mapping[str, Tensor]) -> None:
    """Load weights of the published code, with a ResNet backbone.

    Args:
        model: network of the paper preset, with the tasks, neck, classes and adapters of the weights.
        source: a `.pth` file, or its content: a state dict, by itself or under the key `model`.

    Raises:
        UserError: the file is not readable as data, or its tensors do not fit the network; names the first keys that
            do not fit.
    """
    where = "reference weights" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else _read(source)
    weights = content.get("model", content)
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{where}: holds no state dict, neither by itself nor under the key 'model'")
    if any(part in key for key in weights for part in SWIN):
        raise UserError(f"{where}: has a Swin backbone; only weights with a ResNet can be loaded")

    named = {key: renamed(key) for key in weights}
    expected = model.state_dict()
    misfits = {
        "not in the network": [key for key, name in named.items() if name not in expected],
        "missing": sorted(expected.keys() - named.values()),
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} (the network's {tuple(expected[name].shape)})"
            for key, name in named.items()
            if name in expected and expected[name].shape != weights[key].shape
        ],
    }
    problems = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in misfits.items() if keys]
    if problems:
        raise UserError(f"{where}: does not fit the network; {'; '.join(problems)}")
    model.load_state_dict({name: weights[key] for key, name in named.items()})


def renamed(key: str) -> str:
    """Return the name here of a published tensor; an unknown name is returned unchanged."""
    for pattern, name in RENAMED:
        changed, count = re.subn(f"^{pattern}", name, key)
        if count:
            return changed if changed.startswith("backbone") else changed.replace(".bn.", ".norm.")
    return key


def _read(file: str | Path) -> Mapping[str, Tensor]:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    content = load_tensors(data, file)
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: holds no state dict, neither by itself nor under the key 'model'")
    return content


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
