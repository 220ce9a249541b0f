"""The unit that losses are built from: a sum, and the count it is to be divided by."""

from typing import NamedTuple

from torch import Tensor


class Term(NamedTuple):
    """A loss that is not divided yet.

    The caller adds up `count` over all workers of a step and takes sum / max(count, 1): the gradients, added up over
    the workers, are then those of the whole batch, however it was split.
    """

    sum: Tensor
    """Scalar, float32, connected to the graph; exactly zero without rows."""
    count: Tensor  # type: ignore[assignment]  # tuple.count is not used
    """Scalar, float32, without gradient."""
