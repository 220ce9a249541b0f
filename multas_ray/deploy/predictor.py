"""Inference with a trained network: images of any size in, boxes and masks in the images' own pixels out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multas_ray.checkpoint.weights import load_network
from multas_ray.data.image import stretched, upright_square
from multas_ray.data.pillow import upright_rgb
from multas_ray.data.reject import Reject
from multas_ray.deploy.workers import Workers
from multas_ray.errors import UserError
from multas_ray.evaluate.annotation import Annotation, annotation
from multas_ray.evaluate.evaluator import predict
from multas_ray.storage import Location

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
"""Image as a file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W) of uint8 RGB."""


class Predictor:
    """Network of a checkpoint or an export, ready for images."""

    def __init__(self, path: Location, device: str | torch.device | None = None) -> None:
        """Load a network.

        Args:
            path: run folder, whose best checkpoint is taken, checkpoint folder or export.
            device: PyTorch device; by default a GPU if there is one.

        Raises:
            UserError: there is no whole checkpoint.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        network, meta = load_network(path)
        self.network = network.requires_grad_(False).to(self.device)
        self.det_classes, self.seg_classes = network.det_classes, network.seg_classes
        self.size, self.settings = meta.size, meta.evaluate

    # A str is a sequence of str too, so that the overloads overlap; here it is always one file.
    @overload
    def predict(self, images: ImageLike, batch_size: int = 16, score: float = 0) -> Annotation: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[ImageLike], batch_size: int = 16, score: float = 0) -> list[Annotation]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], batch_size: int = 16, score: float = 0
    ) -> Annotation | list[Annotation]:
        """Predict boxes, labels, scores and mask of an image, or of each image of a list.

        Args:
            images: one image, or several, of any sizes.
            batch_size: number of images that the network takes at a time.
            score: least score of a detection, 0 to 1. With 0, all detections that the evaluation of the training run
                scores (`evaluate.score_threshold`, `nms`, `max_detections`).

        Returns:
            Prediction of the image, or a list with that of each image.

        Raises:
            UserError: a file is not an image, an array is not uint8 RGB, or the score is out of range.
        """
        check_score(score)
        # Anything but a sequence is taken for an image, and refused if it is none.
        if isinstance(images, ImageLike | bytes) or not isinstance(images, Sequence):
            return next(self._annotations([images], 1, score))
        return list(self._annotations(images, batch_size, score))

    def _annotations(self, images: Sequence[ImageLike], batch_size: int, score: float) -> Iterator[Annotation]:
        for start in range(0, len(images), batch_size):
            squares, heights, widths = zip(
                *(read_square(image, self.size) for image in images[start : start + batch_size]), strict=True
            )
            predictions = predict(self.network, torch.stack(squares).to(self.device), self.settings)
            for prediction, height, width in zip(predictions, heights, widths, strict=True):
                yield annotation(prediction, height, width, score)


class NetworkActor:
    """Actor of a Ray Data job that holds a network."""

    def __init__(self, checkpoint: str, workers: Workers) -> None:
        """Load the network.

        Args:
            checkpoint: checkpoint folder or export.
            workers: threads and device of the actor.
        """
        torch.set_num_threads(workers.threads)
        self.predictor = Predictor(checkpoint, workers.device)


def check_score(score: float) -> None:
    """Check a least score of detections.

    Raises:
        UserError: it is not between 0 and 1.
    """
    if not 0 <= score <= 1:
        raise UserError(f"score: {score}, but detections have scores from 0 to 1")


def read_square(image: ImageLike, size: int) -> tuple[Tensor, int, int]:
    """Read an image as the network's input, whole, as in evaluation.

    Files and Pillow's images are turned upright by their EXIF orientation.

    Returns:
        Pixels (3, size, size) uint8, and the upright image's height and width.

    Raises:
        UserError: it is not an image.
    """
    if isinstance(image, str | Path):
        try:
            return upright_square(Path(image).read_bytes(), size)
        except OSError as error:
            raise UserError(f"{image}: not readable ({error.strerror})") from None
        except ValueError as error:  # a NUL in the name
            raise UserError(f"{image}: not readable ({error})") from None
        except Reject as reject:
            raise UserError(f"{image}: {reject.reason} ({reject.detail})") from None
    if isinstance(image, Image.Image):
        image = np.asarray(upright_rgb(image))
    tensor = torch.tensor(image).permute(2, 0, 1) if isinstance(image, np.ndarray) and image.ndim == 3 else image
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.ndim != 3 or len(tensor) != 3:
        kind = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, np.ndarray | Tensor) else type(image).__name__
        raise UserError(
            f"an image is a file, a Pillow image, uint8 (H, W, 3) or a uint8 tensor (3, H, W), several are a list of "
            f"them; this is {kind}"
        )
    return stretched(tensor, size), tensor.shape[1], tensor.shape[2]
