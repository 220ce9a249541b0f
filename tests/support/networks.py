"""Outputs of a network by name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def by_name(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a network's outputs that are there: cls, box, feature and seg."""
    tensors = outputs["det"]._asdict() if "det" in outputs else {}
    return {name: tensor for name, tensor in (tensors | {"seg": outputs.get("seg")}).items() if tensor is not None}
