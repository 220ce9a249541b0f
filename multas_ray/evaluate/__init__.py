"""Metrics and the distributed evaluator."""

from multas_ray.evaluate.scores import score

__all__ = ["score"]
