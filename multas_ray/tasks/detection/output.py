"""Output of a detection head, and answer of a detection teacher."""

from typing import NamedTuple

from torch import Tensor


class DetectionOutput(NamedTuple):
    """Output for n rows. The fields of a teacher's answer in transit are float16 arrays."""

    cls: Tensor
    """(n, A, C) logits; every class is a sigmoid of its own, there is no background column."""
    box: Tensor
    """(n, A, 4) box codes."""
    feature: Tensor | None = None
    """(n, A/6, F): one vector a cell of the pyramid; None where no features are compared."""
