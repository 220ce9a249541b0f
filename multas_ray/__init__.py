"""Detection and segmentation from partially annotated images, with teachers as a Ray service."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multas_ray.deploy.predictor import Predictor


def load(path: str, device: str | None = None) -> "Predictor":
    """Load a trained network that predicts on images: `load("runs/animals/kd").predict("photo.jpg")`.

    Args:
        path: a run folder (its best checkpoint is taken), a checkpoint folder or an export.
        device: a PyTorch device such as "cpu" or "cuda:1"; default: a GPU if there is one.

    Raises:
        UserError: `path` holds no whole checkpoint.
    """
    # Not imported above: all of Ray's processes import this package, and few of them need torch.
    from multas_ray.deploy.predictor import Predictor

    return Predictor(path, device)
