"""Headline metrics, and the one number that decides which checkpoint is best. Free of PyTorch."""

from collections.abc import Mapping

HEADLINE = ("det/AP", "det/AP50", "seg/mIoU")
"""Metrics that tables and progress lines show, in this order, in percent."""
TASK_METRIC: Mapping[str, str] = {"det": "det/AP", "seg": "seg/mIoU"}
"""Metric by which each task is scored, in percent."""
CLASS_METRIC: Mapping[str, str] = {"det": "det/AP", "seg": "seg/IoU"}
"""Metric of each task that there is of every class, as `<metric>/<class>`, in percent."""


def score(metrics: Mapping[str, float]) -> float:
    """Add up det/AP and seg/mIoU (percent), those that are present; 0 without either."""
    return sum((float(metrics[key]) for key in TASK_METRIC.values() if key in metrics), 0.0)
