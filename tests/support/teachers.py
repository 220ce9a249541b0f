"""Teachers of random weights, and images for them."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multas_ray.checkpoint.weights import load_network, write_checkpoint
from multas_ray.teacher.teacher import Answer, TeacherSpec, digests


def images(rows: int = 4) -> np.ndarray:
    """Noise (rows, 3, 64, 64) uint8."""
    return np.random.default_rng(0).integers(0, 256, (rows, 3, 64, 64), dtype=np.uint8)


def with_terms(spec: TeacherSpec, **changes: Any) -> TeacherSpec:
    """The teacher with other terms of its student."""
    return replace(spec, terms=replace(spec.terms, **changes))


def spoiled(spec: TeacherSpec, folder: Path) -> TeacherSpec:
    """The teacher with weights whose answers are beyond float16, written into a folder."""
    source = spoil(spec.description.source, folder)
    return replace(spec, description=replace(spec.description, source=source))


def spoil(checkpoint: str, folder: Path) -> str:
    """A copy of a checkpoint whose answers are beyond float16."""
    network, meta = load_network(checkpoint)
    weights = network.state_dict()
    for name, value in weights.items():
        if "_head." in name and name.endswith("bias"):
            value[:] = 1e38
    write_checkpoint(folder, weights, {}, meta)
    return str(folder)


@dataclass(frozen=True)
class Slow:
    """A source whose teacher takes its time, and says which process it is."""

    seconds: float

    def load(self, device: str):
        def answer(some: np.ndarray) -> Answer:
            time.sleep(self.seconds)
            return Answer(digests(some), dense=np.asarray(os.getpid()))

        return answer
