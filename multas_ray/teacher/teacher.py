"""The frozen teacher: a batch of images in, soft targets out, wherever it is placed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from multas_ray.config import Task
from multas_ray.errors import UserError
from multas_ray.model.network import autocast
from multas_ray.model.weights import load_network

SoftTargets = dict[str, np.ndarray]
"""float16, in the order of the rows. Of a detection teacher `cls` (n, A, C) logits, `box` (n, A, 4) codes and, if asked
for, `feature` (n, A/6, F); of a segmentation teacher `seg` (n, C, size/4, size/4) logits, averaged if finer."""


class Teacher:
    """A frozen network of one task, in evaluation mode, without gradients."""

    def __init__(
        self,
        task: Task,
        checkpoint: str,
        classes: Sequence[str],
        device: str = "cpu",
        precision: str = "float32",
        features: bool = False,
    ) -> None:
        """Load a checkpoint.

        Args:
            task: det or seg.
            checkpoint: a run folder or a checkpoint folder.
            classes: what the student tells apart.
            device: where it computes.
            precision: type of its autocast.
            features: whether a detection teacher returns its features too.

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
        self.features = features and task == "det"
        self.network = network.requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> SoftTargets:
        """Soft targets of images (n, 3, size, size) uint8."""
        everything, nothing = None, torch.zeros(0, dtype=torch.long, device=self.device)
        rows = (everything, nothing) if self.task == "det" else (nothing, everything)
        with autocast(self.device, self.precision):
            outputs = self.network(torch.tensor(images, device=self.device), *rows, features=self.features)
        if self.task == "seg":
            height, width = images.shape[-2:]
            outputs = {"seg": F.adaptive_avg_pool2d(outputs["seg"], (height // 4, width // 4))}
        names = ["cls", "box"] + ["feature"] * self.features if self.task == "det" else ["seg"]
        return {name: outputs[name].half().cpu().numpy() for name in names}
