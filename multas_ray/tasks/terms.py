"""The unit that losses are built from: a sum, and the count it is to be divided by."""

from typing import NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    """A loss that is not divided yet.

    The caller adds up the counts over all workers of a step and divides by them: the gradients, added up over the
    workers, are then those of the whole batch, however it was split.
    """

    sum: Tensor
    """Scalar, at least float32, connected to the graph; exactly zero without rows."""
    count: Tensor  # type: ignore[assignment]  # tuple.count is not used
    """Float32, without gradient: a scalar, or several counts (k,) that are multiplied after each was added up."""
    least: float = 1.0
    """A count below it is taken as this."""

    def divided(self, count: Tensor | None = None) -> Tensor:
        """The loss, given the count over all workers; by this worker's own without it."""
        total = self.count if count is None else count
        return self.sum / total.detach().clamp(min=self.least).prod()


def scaled(terms: dict[str, Term], weight: float) -> dict[str, Term]:
    """Terms times a weight."""
    return {name: term._replace(sum=weight * term.sum) for name, term in terms.items()}


def scalar(value: float, like: Tensor) -> Tensor:
    """A count as a tensor on the device of the loss."""
    return torch.tensor(float(value), device=like.device)
