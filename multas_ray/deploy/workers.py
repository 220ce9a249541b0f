"""The actors that hold a network in a Ray Data job: how many, and what each reserves."""

import argparse
import logging
import math
from dataclasses import dataclass
from typing import Any

from multas_ray.cli import at_least
from multas_ray.config import Resources

CPUS_PER_TASK = 0.25
"""Logical CPUs that a task reserves which prepares what the actors take, or writes what they find."""


@dataclass(frozen=True)
class Workers:
    """The actors of a job."""

    count: int = 1
    gpus: float = 0.0
    """Of each."""
    threads: int = 1
    """CPU threads of each."""

    @property
    def device(self) -> str:
        """Where the network is."""
        return "cuda" if self.gpus else "cpu"

    def options(self) -> dict[str, Any]:
        """Arguments of `map_batches`: whole blocks to actors."""
        import ray

        return {
            **{"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True},
            # Another number than the tasks before them have, or Ray Data would put both into one process.
            **{"num_cpus": 1, "num_gpus": self.gpus or None},
            "compute": ray.data.ActorPoolStrategy(size=self.count),
        }

    def start(self) -> None:
        """Start Ray, or connect to the cluster, and see that there is room for the actors beside a task that reads.

        Raises:
            UserError: says what was asked, and what there is.
        """
        # Not imported above: a command line is parsed without.
        from multas_ray.placement import Ask, check_placement
        from multas_ray.ray_setup import start_ray

        start_ray(self.count + 2)
        tasks = Ask("their tasks", 2, Resources(cpu=CPUS_PER_TASK))
        check_placement([Ask("--workers and --gpus", self.count, Resources(cpu=1, gpu=self.gpus)), tasks])
        # Prints every job's plan.
        logging.getLogger("ray.data").setLevel(logging.ERROR)


ONE = Workers()
"""A single actor without a GPU."""


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Command line flags of `Workers`."""
    parser.add_argument("--workers", type=at_least(1), default=1, help="actors that hold the network (default: 1)")
    parser.add_argument("--gpus", type=_gpus, default=0.0, help="of each, such as 0.5 (default: none)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads of each (default: 1)")


def _gpus(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 on is needed")
    return value
