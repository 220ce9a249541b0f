"""The contract of a task: three modules of its folder, imported when they are first needed.

`rows.py` is NumPy and Arrow, since Ray Data's own processes import it; `network.py` and `scoring.py` are PyTorch. None
imports Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from multas_ray.config import Config, EvaluateConfig, ModelConfig
    from multas_ray.data.batch import AnnotatedImage, Compared, Some
    from multas_ray.data.classes import ClassMap
    from multas_ray.data.columns import Fault
    from multas_ray.data.geometry import Geometry, View
    from multas_ray.data.image import Stored
    from multas_ray.data.row import Row
    from multas_ray.tasks.terms import Term

Truth = Any
"""Annotation of the k annotated rows of a training batch: an array (k, ...) or a NamedTuple of such arrays; tensors
where a loss takes it."""
Head = Any
"""Head of a task, an `nn.Module` of the type that its `head` returns."""
Output = Any
"""Output of a head for n rows: a tensor (n, ...), or a NamedTuple of them with None for those not requested."""
General = Any
"""What any model found in n images: `detection.found.Found`, or scores of pixels (n, C, h, w)."""
ImagePrediction = Any
"""Prediction of one task for one image, ready to be scored, drawn and written."""


class TaskColumns(Protocol):
    """Columns of a task in a row group of N rows of a shard."""

    def __init__(
        self, columns: Mapping[str, pa.ChunkedArray], annotated: np.ndarray, sizes: np.ndarray, classes: int
    ) -> None:
        """Lay the columns out in arrays, so that taking one row is cheap.

        Args:
            columns: the shard's columns by name; those of `MAY_BE_MISSING` may be.
            annotated: (N,) bool: rows that are annotated for the task.
            sizes: (N, 2) int32: height and width of the images in pixels.
            classes: number of classes of the task.
        """

    def values(self, place: int) -> dict[str, Any]:
        """Return the values of one row, 0..N-1, by column; empty ones where it is not annotated."""

    def faults(self) -> Iterator[Fault]:
        """Find the annotated rows that break the data contract."""


class TaskRows(Protocol):
    """`rows.py`: annotation, from what a format's reader delivers to a shard, and from there to a batch."""

    @property
    def FIELDS(self) -> tuple[pa.Field, ...]:
        """Columns of a shard."""

    @property
    def MAY_BE_MISSING(self) -> tuple[str, ...]:
        """Names of the columns that a shard need not have."""

    @property
    def Columns(self) -> type[TaskColumns]:
        """Columns of a row group."""

    def check(self, row: Row, image: Stored, classes: int) -> Row:
        """Make the annotation of a row keep the data contract, before it is written.

        Args:
            row: row as a reader delivers it, with the height and width of the frame in which it was annotated.
            image: its image, upright.
            classes: number of classes of the task.

        Returns:
            The row, repaired; repairs are counted in its notes.

        Raises:
            Reject: the annotation cannot be repaired.
            ValueError: annotation and task mask contradict each other.
        """

    def decode(self, row: Mapping[str, Any], classes: int) -> dict[str, np.ndarray]:
        """Decode the annotation of a row that has one.

        Args:
            row: values of the row, as `read_row` returns them.
            classes: number of classes of the task.

        Returns:
            Arrays by name.

        Raises:
            Reject: the annotation cannot be decoded, or breaks the data contract.
        """

    def translate(self, annotation: Mapping[str, np.ndarray], classes: ClassMap) -> dict[str, np.ndarray]:
        """Translate what `decode` returned to the classes of a run over several data sets.

        Args:
            annotation: arrays by name.
            classes: classes of the row's data set by those of the run.
        """

    def seen(self, sample: Mapping[str, Any], view: View, size: int) -> dict[str, np.ndarray]:
        """Return what is seen of a sample's annotation in a view, by the same names; nothing of one without annotation.

        Args:
            sample: image with its annotation.
            view: rectangle in the pixels of the image.
            size: side in pixels of the square as which the view is shown.
        """

    def collate(self, samples: Sequence[Mapping[str, Any]], size: int) -> Truth:
        """Collate the annotation of augmented samples, as the losses take it.

        Args:
            samples: annotated samples; there may be none.
            size: side of their images in pixels.
        """

    def original(self, sample: Mapping[str, Any]) -> Any:
        """Return the annotation of one sample in the pixels of its image, as the metric takes it."""

    def hides(self, classes: Sequence[str]) -> bool:
        """Whether annotation can hide objects of an unlabelled class, by saying that no class is there.

        Args:
            classes: names of the task's classes.
        """


class TaskNetwork(Protocol):
    """`network.py`: head, losses, and answers of a teacher."""

    def head(self, config: ModelConfig, classes: int) -> nn.Module:
        """Build the head of the configured preset, for this number of classes."""

    def run(self, head: Head, pyramid: Sequence[Tensor], adapters: nn.ModuleList | None, features: bool) -> Output:
        """Run the head on all rows of the pyramid's maps.

        Args:
            head: the task's head.
            pyramid: maps (n, width, h, w), fine to coarse.
            adapters: one 1x1 convolution a level, applied to the features only; None for none.
            features: return features too, if the task's distillation compares them.
        """

    def nothing(self, head: Head, zero: Tensor, config: ModelConfig, size: tuple[int, int], features: bool) -> Output:
        """Return the output for zero rows: empty tensors that are connected to `zero` in the graph.

        Args:
            head: the task's head.
            zero: scalar that depends on the head's parameters with gradient zero.
            config: the network's section of the configuration.
            size: height and width of the network's input in pixels.
            features: return features too, if the task's distillation compares them.
        """

    def loss(
        self, output: Output, truth: Truth, unlabelled: Tensor | None, config: Config, size: tuple[int, int]
    ) -> dict[str, Term]:
        """Compute the supervised losses of k annotated rows; k may be 0. Unlabelled classes get no gradient.

        Args:
            output: output of the head for these rows.
            truth: annotation of these rows, as tensors on the output's device.
            unlabelled: (k, C) bool on that device: classes that nobody looked for; None where there are none.
            config: configuration of the run.
            size: height and width of the network's input in pixels.
        """

    def distil(
        self,
        student: Output,
        teacher: Output | None,
        chosen: Some[Compared],
        truth: Some[Truth],
        config: Config,
        size: tuple[int, int],
    ) -> dict[str, Term]:
        """Compute the configured losses between the outputs of student and teacher for the same n rows of a batch.

        Args:
            student: output of the student's head.
            teacher: answer of the teacher; None if n is 0.
            chosen: the rows' numbers in the batch, and the classes that are compared.
            truth: the batch's annotation, on the device of the output.
            config: configuration of the run.
            size: height and width of the network's input in pixels.

        Raises:
            UserError: the teacher's answer has another shape than the student's.
        """

    def answer(self, output: Output, size: tuple[int, int]) -> Output:
        """Reduce a teacher's output to the part that students are compared with, in float16.

        Args:
            output: output of the teacher's head.
            size: height and width of the network's input in pixels.
        """

    def spread(self, answer: Output, columns: Sequence[int | None], count: int) -> Output:
        """Place the classes of a teacher in the columns of its student.

        Args:
            answer: answer of the teacher, in its own classes.
            columns: column of each of its classes; None for one that the student does not have. Several may share one.
            count: number of the student's classes. Those that the teacher does not know get the probability 0.
        """

    def soften(self, answer: Output, temperature: float) -> Output:
        """Divide the logits of an answer by a temperature."""

    def generalize(self, output: Output, config: ModelConfig, size: tuple[int, int]) -> General:
        """Return an output of one of our own heads in a form that belongs to no network.

        Args:
            output: output of the head.
            config: section of the configuration of the network that it is of.
            size: height and width of that network's input in pixels.
        """

    def translate(
        self,
        general: General,
        columns: Sequence[int | None],
        classes: Sequence[str],
        temperature: float,
        exclusive: bool,
    ) -> General:
        """Bring what any model found to the classes of a student.

        Args:
            general: answer with the model's own classes.
            columns: column of each of them among those of the student; None for one that is left out.
            classes: names of the student's classes.
            temperature: divisor of the logits, once they are of the student's classes.
            exclusive: whether an object is of one of the model's classes at most.
        """

    def fit(self, general: General, config: ModelConfig, size: tuple[int, int]) -> Output:
        """Bring what any model found, in a student's classes, to the form of the student's output, in float16.

        Args:
            general: answer with the student's classes.
            config: section of the configuration of the student's network.
            size: height and width of the student's input in pixels.
        """

    def merge(self, answers: Sequence[Output], known: np.ndarray) -> Output:
        """Merge the answers of several teachers for the same images, each class from those that know it.

        Args:
            answers: answers of m teachers in the columns of their student, as tensors.
            known: (m, C) bool: the classes that each of them knows.

        Returns:
            An answer in float16.
        """

    def pack(self, answer: Output) -> list[bytes]:
        """Pack an answer for n images into n byte strings of some kilobytes."""

    def unpack(self, packed: Sequence[bytes], device: torch.device) -> Output:
        """Invert `pack`, up to the packing's error.

        Args:
            packed: one byte string an image, at least one.
            device: device of the answer, which is float32.
        """

    def check_packed(self, packed: bytes, classes: int, size: int) -> None:
        """Check a packed answer that was read from a file.

        Args:
            packed: bytes of the answer for one image.
            classes: number of classes of the task.
            size: side of the image in pixels.

        Raises:
            ValueError: the bytes are no packed answer, or one for another number of classes or size.
        """


class TaskOriginal(Protocol):
    """`original.py`: what teachers found in original images, stored, and moved with the image when it is augmented."""

    def pack(self, general: General) -> list[bytes]:
        """Pack what was found in n images, in the classes of a student, into n byte strings of some kilobytes."""

    def follow(self, packed: bytes, geometry: Geometry, size: int, background: bool) -> Any:
        """Move what was found in an image with its augmentation.

        Args:
            packed: what `pack` made of the image.
            geometry: where the augmented image lies in the original.
            size: side of the augmented image in pixels.
            background: whether the first class is the background, which what lies outside the original is of.

        Returns:
            Arrays, as `stack` takes them.
        """

    def stack(self, images: Sequence[Any]) -> General | Output:
        """Stack what `follow` returned for n >= 1 images into arrays: as was found, or in the form of an answer."""

    def check(self, packed: bytes, classes: int) -> None:
        """Check what was read from a file.

        Raises:
            ValueError: the bytes were not packed by `pack`, or are for another number of classes.
        """

    def unite(self, teachers: Sequence[General], known: np.ndarray) -> General:
        """Unite what several teachers found in the same images: each class is the mean of those that know it.

        Args:
            teachers: what each found, in the classes of their student.
            known: (m, C) bool: the classes that each of them knows.
        """


class TaskScoring(Protocol):
    """`scoring.py`: from outputs to predictions, and from predictions to metrics."""

    def predict(
        self, output: Output, config: EvaluateConfig, model: ModelConfig, size: tuple[int, int]
    ) -> list[ImagePrediction]:
        """Convert the output of the head for n rows into n predictions.

        Args:
            output: output of the head.
            config: thresholds of evaluation.
            model: the network's section of the configuration.
            size: height and width of the network's input in pixels.
        """

    def metric(self, classes: Sequence[str], config: EvaluateConfig) -> Any:
        """Create an empty metric, an object with the methods `state`, `merge`, `compute` and `images`."""

    def add(self, metric: Any, image: AnnotatedImage, prediction: ImagePrediction) -> None:
        """Add an image to a metric.

        Args:
            metric: metric that `metric` created.
            image: image with its annotation.
            prediction: prediction for the image, from `predict`.
        """


class TaskParts:
    """The modules of a task's folder."""

    def __init__(self, folder: str) -> None:
        """Name the folder beside this module."""
        self._package = f"{__package__}.{folder}"

    @cached_property
    def rows(self) -> TaskRows:
        """Annotation of rows: free of PyTorch."""
        return cast(TaskRows, import_module(f"{self._package}.rows"))

    @cached_property
    def network(self) -> TaskNetwork:
        """Head, losses and distillation."""
        return cast(TaskNetwork, import_module(f"{self._package}.network"))

    @cached_property
    def original(self) -> TaskOriginal:
        """Answers for original images."""
        return cast(TaskOriginal, import_module(f"{self._package}.original"))

    @cached_property
    def scoring(self) -> TaskScoring:
        """Predictions and metrics."""
        return cast(TaskScoring, import_module(f"{self._package}.scoring"))
