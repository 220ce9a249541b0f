"""The one number that decides which checkpoint is best."""

from collections.abc import Mapping

TASK_SCORES = ("det/AP", "seg/mIoU")


def score(metrics: Mapping[str, float]) -> float:
    """Sum of det/AP and seg/mIoU (percent) over those that are present; 0 without either."""
    return sum((float(metrics[key]) for key in TASK_SCORES if key in metrics), 0.0)
