"""The actors that hold a network in a Ray Data job: how many, and what each reserves."""

import argparse
from dataclasses import dataclass
from typing import Any

import ray

from multas_ray.config import Resources
from multas_ray.errors import UserError
from multas_ray.placement import Ask, check_placement

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
        return {
            **{"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True},
            # Another number than the tasks before them have, or Ray Data would put both into one process.
            **{"num_cpus": 1, "num_gpus": self.gpus or None},
            "compute": ray.data.ActorPoolStrategy(size=self.count),
        }

    def check_room(self) -> None:
        """Refuse more than there is room for, beside a task that reads.

        Raises:
            UserError: says what was asked, and what there is.
        """
        tasks = Ask("their tasks", 2, Resources(cpu=CPUS_PER_TASK))
        check_placement([Ask("--workers and --gpus", self.count, Resources(cpu=1, gpu=self.gpus)), tasks])


ONE = Workers()
"""A single actor without a GPU."""


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Command line flags of `Workers`."""
    parser.add_argument("--workers", type=int, default=1, help="actors that hold the network (default: %(default)s)")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each (default: none)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (default: %(default)s)")


def workers_of(arguments: argparse.Namespace) -> Workers:
    """What the flags say.

    Raises:
        UserError: a value makes no sense.
    """
    for name, least in (("workers", 1), ("threads", 1), ("gpus", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} {getattr(arguments, name)}: {least} or more")
    return Workers(arguments.workers, arguments.gpus, arguments.threads)
