"""Tasks: the rows, network parts, losses and scores of each. A task is a folder; `PARTS` is the only registry."""

from typing import TYPE_CHECKING

from multas_ray.config import Task
from multas_ray.tasks.task import TaskParts

if TYPE_CHECKING:
    # Each module keeps its contract: a wrong signature is a type error here.
    from multas_ray.tasks.detection import network as det_network
    from multas_ray.tasks.detection import rows as det_rows
    from multas_ray.tasks.detection import scoring as det_scoring
    from multas_ray.tasks.segmentation import network as seg_network
    from multas_ray.tasks.segmentation import rows as seg_rows
    from multas_ray.tasks.segmentation import scoring as seg_scoring
    from multas_ray.tasks.task import TaskNetwork, TaskRows, TaskScoring

    _det_rows: TaskRows = det_rows
    _det_network: TaskNetwork = det_network
    _det_scoring: TaskScoring = det_scoring
    _seg_rows: TaskRows = seg_rows
    _seg_network: TaskNetwork = seg_network
    _seg_scoring: TaskScoring = seg_scoring

PARTS: dict[Task, TaskParts] = {"det": TaskParts("detection"), "seg": TaskParts("segmentation")}
