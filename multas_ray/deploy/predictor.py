"""A trained network as its users want it: images of any size in, boxes and masks in their own pixels out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from multas_ray.checkpoint.weights import load_network
from multas_ray.data.image import decode_rgb
from multas_ray.data.pillow import upright_rgb
from multas_ray.data.reject import Reject
from multas_ray.data.transforms import resize
from multas_ray.errors import UserError
from multas_ray.evaluate.annotation import Annotation, annotation
from multas_ray.evaluate.evaluator import predict
from multas_ray.storage import Location

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W) of uint8 RGB."""


class Predictor:
    """A checkpoint's or an export's network, ready for images."""

    def __init__(self, path: Location, device: str | torch.device | None = None) -> None:
        """Load it.

        Args:
            path: a run folder (its best checkpoint is taken), a checkpoint folder or an export.
            device: default: a GPU if there is one.

        Raises:
            UserError: there is no whole checkpoint.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        network, meta = load_network(path)
        self.network = network.requires_grad_(False).to(self.device)
        self.det_classes, self.seg_classes = network.det_classes, network.seg_classes
        self.size, self.settings = meta.size, meta.evaluate

    # A str is a sequence of str too: here, always a file.
    @overload
    def predict(self, images: ImageLike, batch_size: int = 16, score: float = 0) -> Annotation: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[ImageLike], batch_size: int = 16, score: float = 0) -> list[Annotation]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], batch_size: int = 16, score: float = 0
    ) -> Annotation | list[Annotation]:
        """Boxes, labels, scores and mask of an image of any size, or, for a list of images, a list of them.

        Args:
            images: one, or several of any sizes.
            batch_size: images at a time.
            score: the least of a detection, 0 to 1. Those of 0 are all that the evaluation of the training run would
                score (`evaluate.score_threshold`, `nms`, `max_detections`).

        Raises:
            UserError: a file is not an image, an array is not uint8 RGB, or the score is out of range.
        """
        check_score(score)
        # What is no sequence of images is refused as an image.
        if isinstance(images, ImageLike | bytes) or not isinstance(images, Sequence):
            return next(self._annotations([images], 1, score))
        return list(self._annotations(images, batch_size, score))

    def _annotations(self, images: Sequence[ImageLike], batch_size: int, score: float) -> Iterator[Annotation]:
        for start in range(0, len(images), batch_size):
            pixels = [read_image(image) for image in images[start : start + batch_size]]
            inputs = torch.stack([network_input(each, self.size) for each in pixels])
            predictions = predict(self.network, inputs.to(self.device), self.settings)
            for each, prediction in zip(pixels, predictions, strict=True):
                yield annotation(prediction, each.shape[-2], each.shape[-1], score)


def network_input(image: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 as the network takes it, (3, size, size), resized as in evaluation."""
    return resize({"image": tv_tensors.Image(image)}, size)["image"].as_subclass(Tensor)


def check_score(score: float) -> None:
    """Refuse what no detection's score can be.

    Raises:
        UserError
    """
    if not 0 <= score <= 1:
        raise UserError(f"score: {score}, but detections have scores from 0 to 1")


def read_image(image: ImageLike) -> Tensor:
    """(3, H, W) uint8 RGB of whatever an image may be given as; files and Pillow's images upright, as EXIF says.

    Raises:
        UserError: it is none.
    """
    if isinstance(image, str | Path):
        try:
            return decode_rgb(Path(image).read_bytes(), upright=True)
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
    return tensor
