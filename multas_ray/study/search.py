"""Search spaces as they are written on a command line: `optim.lr=loguniform(1e-4,1e-2)`."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from multas_ray.documents import parse_yaml
from multas_ray.errors import UserError, first_line, quoted

DOMAINS: dict[str, Callable[..., Any]] = {
    "choice": lambda *values: tune.choice(list(values)),
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
    "randint": tune.randint,
    "lograndint": tune.lograndint,
}
"""What a value can be drawn from: one of some; or a number between two, the upper end excluded for whole ones."""


def parse_search(texts: Sequence[str]) -> dict[str, Any]:
    """Dotted configuration path -> Tune's domain.

    Args:
        texts: `path=domain(values)` each; the values are YAML.

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
    if name == "choice":
        if not values:
            raise ValueError("nothing to choose from")
        return DOMAINS[name](*values)
    kind = int if "int" in name else (int, float)
    if len(values) != 2 or not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise ValueError(f"two {'whole ' if kind is int else ''}numbers are needed, the lower and the upper end")
    low, high = values
    if low >= high or (name.startswith("log") and low <= 0):
        raise ValueError(f"from {low} to {high} is no range" + (" of a logarithm" if name.startswith("log") else ""))
    return DOMAINS[name](low, high)
