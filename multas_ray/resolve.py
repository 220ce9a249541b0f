"""Settings of a configuration that depend on the hardware it runs on."""

from collections.abc import Callable
from typing import TypeVar

import ray
import torch

from multas_ray.config import Config
from multas_ray.model.precision import bfloat16_slowdown, has_bfloat16
from multas_ray.placement import Ask, check_placement
from multas_ray.ray_setup import on_cluster, start_ray

Answer = TypeVar("Answer")


def resolve_precision(config: Config, resumed: str | None = None) -> Config:
    """Resolve `train.precision`: the type of the student, its teachers and their store alike.

    `auto` becomes a type that the training workers' device computes in hardware. An explicit bfloat16 that the device
    only emulates stays, and a line says how much slower it is.

    Args:
        config: configuration of the run.
        resumed: precision of the run's earlier attempts, which it keeps on other hardware; None for a new run.

    Returns:
        A copy of `config`.

    Raises:
        UserError: the cluster has no room for a worker.
    """
    precision = resumed or config.train.precision
    if precision == "auto":
        precision = "bfloat16" if _on_worker(config, has_bfloat16) else "float32"
    elif precision == "bfloat16":
        slowdown = _on_worker(config, _slowdown_if_emulated)
        if slowdown is not None:
            choice = "the run began with it" if resumed else "auto chooses float32"
            print(
                f"train.precision: bfloat16 is emulated here, {slowdown:.1f} times slower than float32; {choice}",
                flush=True,
            )
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def _slowdown_if_emulated(device: torch.device) -> float | None:
    return None if has_bfloat16(device) else bfloat16_slowdown(device)


def _on_worker(config: Config, question: Callable[[torch.device], Answer]) -> Answer:
    """Answer a question about a device where the training workers run: on a cluster, a node with their resources."""
    resources = config.train.resources
    if not on_cluster():
        return question(torch.device("cuda" if resources.gpu and torch.cuda.is_available() else "cpu"))

    def ask() -> Answer:
        return question(torch.device("cuda" if ray.get_gpu_ids() else "cpu"))

    start_ray()
    check_placement([Ask("train.resources", 1, resources)])
    # The default strategy: a trial of a study or search runs in a placement group, which has no room for this task.
    task = ray.remote(**resources.options(), scheduling_strategy="DEFAULT")(ask)
    answer: Answer = ray.get(task.remote())
    return answer
