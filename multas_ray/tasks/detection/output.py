"""What a detection head says, and a detection teacher answers."""

from typing import NamedTuple

from torch import Tensor


class DetectionOutput(NamedTuple):
    """The output of n rows. Of a teacher's answer on its way, arrays of float16."""

    cls: Tensor
    """(n, A, C) logits; every class is a sigmoid of its own, there is no background column."""
    box: Tensor
    """(n, A, 4) box codes."""
    feature: Tensor | None = None
    """(n, A/6, F) one vector a cell of the pyramid, where features are compared."""
