"""Actors that hold a network in a Ray Data job: their number, and the reservation of each."""

import argparse
import logging
import math
from dataclasses import dataclass
from typing import Any

from multas_ray.cli import at_least
from multas_ray.config import Resources

CPUS_PER_TASK = 0.25
"""Logical CPUs reserved by a task that prepares the actors' input or writes their output."""


@dataclass(frozen=True)
class Workers:
    """Actors of a job."""

    count: int = 1
    gpus: float = 0.0
    """GPUs, or the share of one, of each actor."""
    threads: int = 1
    """CPU threads of each actor."""

    @property
    def device(self) -> str:
        """PyTorch device of the network."""
        return "cuda" if self.gpus else "cpu"

    def options(self) -> dict[str, Any]:
        """Return the arguments of `map_batches` that send whole blocks to the actors."""
        import ray

        return {
            **{"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True},
            # Differs from the CPUs of the tasks before them, or Ray Data would run both in one process.
            **{"num_cpus": 1, "num_gpus": self.gpus or None},
            "compute": ray.data.ActorPoolStrategy(size=self.count),
        }

    def start(self) -> None:
        """Start Ray, or connect to the cluster, and check that it has room for the actors and the tasks beside them.

        Raises:
            UserError: there is no room; names the request and the cluster's nodes.
        """
        # Imported here: a command line is parsed without Ray.
        from multas_ray.placement import Ask, check_placement
        from multas_ray.ray_setup import start_ray

        start_ray(self.count + 2)
        tasks = Ask("their tasks", 2, Resources(cpu=CPUS_PER_TASK))
        check_placement([Ask("--workers and --gpus", self.count, Resources(cpu=1, gpu=self.gpus)), tasks])
        # It prints the execution plan of every job.
        logging.getLogger("ray.data").setLevel(logging.ERROR)


ONE = Workers()
"""One actor without a GPU."""


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command line flags of `Workers` to a parser."""
    parser.add_argument("--workers", type=at_least(1), default=1, help="actors that hold the network (default: 1)")
    parser.add_argument("--gpus", type=_gpus, default=0.0, help="GPUs of each actor, such as 0.5 (default: none)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads of each actor (default: 1)")


def _gpus(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 on is needed")
    return value
