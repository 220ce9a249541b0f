"""The training job: step, loop, optimiser, checkpoints, tracking."""
