"""The multi-task network. Plain PyTorch: never imports Ray."""
