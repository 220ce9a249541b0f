"""Conversion of tensors to arrays: metrics count in NumPy, whatever device or library their inputs come from."""

import numpy as np
from torch import Tensor


def to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    """Return values as an array in the host's memory."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
