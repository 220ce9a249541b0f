"""Detection and segmentation from partially annotated images, with teachers as a Ray service."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multas_ray.deploy.predictor import Predictor


def load(path: str, device: str | None = None) -> "Predictor":
    """A trained network, ready for images: `load("runs/animals/kd").predict("photo.jpg")`.

    Args:
        path: a run folder (its best checkpoint is taken), a checkpoint folder or an export.
        device: such as "cpu" or "cuda:1"; default: a GPU if there is one.

    Raises:
        UserError: there is no whole checkpoint.
    """
    # Not imported above: all of Ray's processes import this package, and few of them need torch.
    from multas_ray.deploy.predictor import Predictor

    return Predictor(path, device)
