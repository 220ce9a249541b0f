"""Tasks: what each adds to rows, network, losses and scores. A task is a folder; `PARTS` is the only registry."""

from multas_ray.config import Task
from multas_ray.tasks.task import TaskParts

PARTS: dict[Task, TaskParts] = {"det": TaskParts("detection"), "seg": TaskParts("segmentation")}
