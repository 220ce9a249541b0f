"""Losses. Plain PyTorch: never imports Ray."""
