"""Checkpoint folders."""
