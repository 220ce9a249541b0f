"""Page docs/backbones.md: which models of timm can be backbones, found by building each and trying it, without weights.

python -m multas_ray.model.timm_table > docs/backbones.md
"""

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from multas_ray.errors import UserError
from multas_ray.model.backbones import TIMM, BackboneSettings
from multas_ray.model.timm_backbones import FREE, PlainBackbone, strides_of, timm_backbone

INTRO = """# Backbones of timm

`model.backbone: timm/NAME` takes any of these models of timm {version} (the extra `timm`), with the tag of its weights,
such as `timm/convnext_tiny.dinov3_lvd1689m`. A pyramid has maps of the strides 8, 16 and 32; a plain ViT has one map,
from which they are made (Li et al., ECCV 2022). Licences are those of the published weights; where one asks for more
than this project's, a training says so when it begins. This page is made by building and trying every model, without
weights: `python -m multas_ray.model.timm_table > docs/backbones.md`.
"""


@dataclass
class Family:
    """Models of one module of timm."""

    shapes: set[str] = field(default_factory=set)
    usable: list[str] = field(default_factory=list)
    models: int = 0
    licences: set[str] = field(default_factory=set)


def families() -> dict[str, Family]:
    """Build every model of timm without weights, and sort them by their modules."""
    import timm

    found: dict[str, Family] = defaultdict(Family)
    names = timm.list_models()
    for number, name in enumerate(names):
        family = found[timm.models.model_entrypoint(name).__module__.rpartition(".")[2]]
        family.models += 1
        shape = _shape(timm, name)
        if shape:
            family.usable.append(name)
            family.shapes.add(shape)
            family.licences |= _licences(timm, name)
        print(f"\r{number + 1} of {len(names)} models", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return dict(sorted(found.items()))


def page() -> str:
    """Make the page as Markdown."""
    import timm

    rows = ["| family | models | for example | maps | other licences of weights |", "| --- | --- | --- | --- | --- |"]
    rest = []
    for name, family in families().items():
        if not family.usable:
            rest.append(name)
            continue
        licences = ", ".join(sorted(family.licences)) or "none"
        example = min(family.usable, key=len)
        count = f"{len(family.usable)}" + (f" of {family.models}" if len(family.usable) < family.models else "")
        rows.append(f"| {name} | {count} | `{example}` | {', '.join(sorted(family.shapes))} | {licences} |")
    none = f"Families of which none can: {', '.join(rest)}."
    return "\n".join([INTRO.format(version=timm.__version__), *rows, "", none, ""])


def _shape(timm: Any, name: str) -> str:
    """Describe the maps of a model that can be a backbone; empty for another."""
    # Without memory for weights: the largest models have gigabytes.
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                backbone = timm_backbone(f"{TIMM}{name}", BackboneSettings(pretrained=False, norm="batch"))
        except UserError as error:
            # A model that looks at its own numbers needs them.
            if "meta" not in str(error):
                return ""
        else:
            strides = strides_of(timm, name)
            plain = isinstance(backbone, PlainBackbone)
            return f"ViT of stride {strides[0]}" if plain else f"pyramid of {len(strides)}, from stride {strides[0]}"
    return ""


def _licences(timm: Any, name: str) -> set[str]:
    tagged = timm.list_models(f"{name}.*", pretrained=True)
    licences = {timm.get_pretrained_cfg(each).license for each in tagged}
    return {licence for licence in licences if licence and licence.lower() not in FREE}


if __name__ == "__main__":
    print(page(), end="")
