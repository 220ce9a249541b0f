"""Metrics count in NumPy, whatever device or library their inputs come from."""

import numpy as np
from torch import Tensor


def to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    """The values as an array on the host."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
