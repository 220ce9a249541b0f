"""What a sweep searches: its settings, and its space as it is written on a command line."""

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from multas_ray.config import Config
from multas_ray.config_file import parse_config
from multas_ray.documents import parse_yaml
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.evaluate.scores import HEADLINE

Scheduler = Literal["asha", "median", "none"]
METRICS = ("score", *HEADLINE)


@dataclass(frozen=True)
class Sweep:
    """Settings of a sweep."""

    tree: dict[str, Any]
    """The common configuration."""
    search: Sequence[str]
    """The search space, see `parse_search`."""
    out: str
    """Folder of the trials' runs and of the outcome."""
    trials: int
    scheduler: Scheduler = "asha"
    metric: str = "score"
    """Metric to maximise."""
    parallel: int | None = None
    """Trials at a time; default: as many as the cluster has room for."""
    seed: int = 0
    """Seed of the draws."""

    def config(self, drawn: Mapping[str, Any], run: str) -> Config:
        """Make the configuration of a trial.

        Args:
            drawn: dotted configuration path -> value.
            run: its run folder.

        Raises:
            UserError: a path or value is not allowed.
        """
        overrides = [f"{path}={json.dumps(value)}" for path, value in drawn.items()]
        return parse_config(deepcopy(self.tree), [*overrides, f"train.run={json.dumps(run)}"])


DOMAINS = ("choice", "uniform", "loguniform", "randint", "lograndint")
"""Functions of Ray Tune that a value can be drawn by: one of some values, or a number between two; of whole numbers,
the upper end is excluded."""


def parse_search(texts: Sequence[str]) -> dict[str, Any]:
    """Parse a search space such as `optim.lr=loguniform(1e-4,1e-2)`.

    Args:
        texts: `path=domain(values)` each; the values are YAML.

    Returns:
        Dotted configuration path -> Ray Tune's domain.

    Raises:
        UserError: one is not of this form, or its values are no range.
    """
    space = {}
    for text in texts:
        shown = f"--search {quoted(text)}"
        match = re.fullmatch(r"([\w.]+)=(\w+)\((.*)\)", text.strip())
        if match is None:
            raise UserError(f"{shown}: write it as path=domain(values), such as optim.lr=loguniform(1e-4,1e-2)")
        path, name, inside = match.groups()
        if name not in DOMAINS:
            raise UserError(f"{shown}: no domain {quoted(name)}; allowed: {', '.join(DOMAINS)}")
        values = parse_yaml(f"[{inside}]", shown)
        try:
            space[path] = _domain(name, values)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{shown}: {first_line(error)}") from None
    return space


def _domain(name: str, values: list[Any]) -> Any:
    # Importing it takes a second, which `--help` should not.
    from ray import tune

    if name == "choice":
        if not values:
            raise ValueError("nothing to choose from")
        return tune.choice(values)
    kind = int if "int" in name else (int, float)
    if len(values) != 2 or not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise ValueError(f"two {'whole ' if kind is int else ''}numbers are needed, the lower and the upper end")
    low, high = values
    if low >= high or (name.startswith("log") and low <= 0):
        raise ValueError(f"from {low} to {high} is no range" + (" of a logarithm" if name.startswith("log") else ""))
    return getattr(tune, name)(low, high)
