"""Frozen single-task teachers and how their soft targets reach a worker."""
