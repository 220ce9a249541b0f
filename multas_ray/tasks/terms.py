"""The unit that losses are built from: a sum, and the count that divides it."""

from typing import NamedTuple

import torch
from torch import Tensor

SURELY_ABSENT = -1e4
"""Logit of a class whose probability is exactly 0 in float32; float16 holds it."""


class Term(NamedTuple):
    """A loss that is not divided yet.

    The caller adds up the counts over all workers of a step and divides by them: the gradients, added up over the
    workers, are then those of the whole batch, however it was split.
    """

    sum: Tensor
    """Scalar, at least float32, connected to the graph; exactly zero without rows."""
    count: Tensor  # type: ignore[assignment]  # tuple.count is not used
    """Float32, without gradient: a scalar, or several counts (k,), whose product divides after each was added up."""
    least: float = 1.0
    """Lower bound of the count as a divisor."""

    def divided(self, count: Tensor | None = None) -> Tensor:
        """Divide the sum.

        Args:
            count: count over all workers, of the shape of `self.count`; None for this worker's own.

        Returns:
            The loss, a scalar.
        """
        total = self.count if count is None else count
        return self.sum / total.detach().clamp(min=self.least).prod()


def scaled(terms: dict[str, Term], weight: float) -> dict[str, Term]:
    """Multiply the sums of terms by a weight; their counts stay."""
    return {name: term._replace(sum=weight * term.sum) for name, term in terms.items()}


def scalar(value: float, like: Tensor) -> Tensor:
    """Return a count as a float32 scalar on the device of a loss."""
    return torch.tensor(float(value), device=like.device)
