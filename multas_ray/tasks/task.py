"""The contract of a task: three modules of its folder, imported when they are first needed.

`rows.py` is NumPy and Arrow, since Ray Data's own processes import it; `network.py` and `scoring.py` are PyTorch. None
imports Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from multas_ray.config import Config, EvaluateConfig, ModelConfig
    from multas_ray.data.batch import Some
    from multas_ray.tasks.terms import Term

Truth = Any
"""Annotation of the k annotated rows of a training batch: an array (k, ...) or a NamedTuple of such arrays; as tensors
where a loss takes it."""
Output = Any
"""What a head says of n rows: a NamedTuple of tensors (n, ...), with None for those that were not asked for."""
Found = Any
"""A network's answer for one image, ready to be scored, drawn and written."""


class TaskRows(Protocol):
    """`rows.py`: annotation from a stored row to a batch."""

    def decode(self, row: Mapping[str, Any], classes: int) -> dict[str, np.ndarray]:
        """The annotation of an annotated row (see `read_row`), by the names that `transforms.Augment` knows.

        Raises:
            Reject: it cannot be decoded, or breaks the data contract.
        """

    def collate(self, samples: Sequence[Mapping[str, Any]], size: int) -> Truth:
        """The annotation of augmented samples of this side in pixels, as the losses take it; there may be none."""

    def original(self, sample: Mapping[str, Any]) -> Any:
        """The annotation of one sample in the pixels of its image, as the metric takes it."""


class TaskNetwork(Protocol):
    """`network.py`: head, losses, and the answers of a teacher."""

    def head(self, config: ModelConfig, classes: int) -> nn.Module:
        """The head that the configured preset has."""

    def run(self, head: nn.Module, pyramid: Sequence[Tensor], adapters: nn.ModuleList | None, features: bool) -> Output:
        """The head's output for all rows of the pyramid's maps.

        Args:
            adapters: a 1x1 convolution a level, through which features go, if there are any.
            features: whether features are asked for, of a task whose distillation can compare them.
        """

    def nothing(
        self, head: nn.Module, zero: Tensor, config: ModelConfig, size: tuple[int, int], features: bool
    ) -> Output:
        """The output for no row: empty, but connected to `zero`.

        Args:
            size: height and width of the network's input in pixels.
            features: whether features are asked for.
        """

    def loss(self, output: Output, truth: Truth, config: Config, size: tuple[int, int]) -> dict[str, Term]:
        """The supervised losses of annotated rows; there may be none.

        Args:
            output: the head's, for the rows of `truth`.
            size: height and width of the network's input in pixels.
        """

    def distil(
        self,
        student: Output,
        teacher: Output | None,
        rows: np.ndarray,
        truth: Some[Truth],
        config: Config,
        size: tuple[int, int],
    ) -> dict[str, Term]:
        """The configured losses between the student's output and a teacher's, for the same rows of a batch.

        Args:
            teacher: None where there are no rows.
            rows: (n,) int64: these rows of the batch.
            truth: the batch's annotation, on the device of the output.
            size: height and width of the network's input in pixels.

        Raises:
            UserError: the teacher's answer has another shape than the student's.
        """

    def answer(self, output: Output, size: tuple[int, int]) -> Output:
        """The part of a teacher's output that its students are compared with, in float16."""

    def pack(self, answer: Output) -> list[bytes]:
        """An answer as some kilobytes an image."""

    def unpack(self, packed: Sequence[bytes], device: torch.device) -> Output:
        """The inverse of `pack`, up to the packing's error, in float32."""

    def check_packed(self, packed: bytes, classes: int, size: int) -> None:
        """Look at one packed answer of a file.

        Args:
            size: side of the image in pixels.

        Raises:
            ValueError: it is none, or of another number of classes or size.
        """


class TaskScoring(Protocol):
    """`scoring.py`: from outputs to what is found, and how good that is."""

    def predict(self, output: Output, config: EvaluateConfig, model: ModelConfig, size: tuple[int, int]) -> list[Found]:
        """What the head's output says of each of its rows.

        Args:
            size: height and width of the network's input in pixels.
        """

    def metric(self, classes: Sequence[str], config: EvaluateConfig) -> Any:
        """An empty metric: `add`, `state`, `merge`, `compute`."""

    def add(self, metric: Any, image_id: str, size: tuple[int, int], found: Found, truth: Any) -> None:
        """Add an image to a metric.

        Args:
            size: height and width of the original image in pixels.
            truth: its annotation, from `original` of the task's rows.py.
        """


class TaskParts:
    """The modules of a task's folder."""

    def __init__(self, folder: str) -> None:
        self._package = f"{__package__}.{folder}"

    @cached_property
    def rows(self) -> TaskRows:
        """Rows: free of PyTorch."""
        return cast(TaskRows, import_module(f"{self._package}.rows"))

    @cached_property
    def network(self) -> TaskNetwork:
        """Head, losses and distillation."""
        return cast(TaskNetwork, import_module(f"{self._package}.network"))

    @cached_property
    def scoring(self) -> TaskScoring:
        """Predictions and metrics."""
        return cast(TaskScoring, import_module(f"{self._package}.scoring"))
