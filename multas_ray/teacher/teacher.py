"""The frozen teacher: a batch of images in, soft targets out, wherever it is placed."""

from collections.abc import Sequence

import numpy as np
import torch

from multas_ray.config import Task
from multas_ray.errors import UserError
from multas_ray.model.network import autocast
from multas_ray.model.weights import load_network

SoftTargets = dict[str, np.ndarray]
"""float16, in the order of the rows: of a detection teacher `cls` (n, A, C) logits and `box` (n, A, 4) codes, of a
segmentation teacher `seg` (n, C, size/4, size/4) logits."""


class Teacher:
    """A frozen network of one task, in evaluation mode, without gradients."""

    def __init__(
        self, task: Task, checkpoint: str, classes: Sequence[str], device: str = "cpu", precision: str = "float32"
    ) -> None:
        """Load a checkpoint for a student that tells these classes apart; it computes in autocast `precision`.

        Raises:
            UserError: it cannot be read, was not trained for the task, or has other classes.
        """
        network, _ = load_network(checkpoint)
        where = f"teachers.{task}.checkpoint {checkpoint}"
        if task not in network.tasks:
            raise UserError(f"{where}: trained for {', '.join(network.tasks)}, not {task}")
        own = network.det_classes if task == "det" else network.seg_classes
        if list(own) != list(classes):
            raise UserError(f"{where}: its classes are {', '.join(own)}; the data set's are {', '.join(classes)}")
        self.task = task
        self.device = torch.device(device)
        self.precision = precision
        self.network = network.requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> SoftTargets:
        """Soft targets of images (n, 3, size, size) uint8."""
        everything, nothing = None, torch.zeros(0, dtype=torch.long, device=self.device)
        rows = (everything, nothing) if self.task == "det" else (nothing, everything)
        with autocast(self.device, self.precision):
            outputs = self.network(torch.tensor(images, device=self.device), *rows)
        names = ("cls", "box") if self.task == "det" else ("seg",)
        return {name: outputs[name].half().cpu().numpy() for name in names}
