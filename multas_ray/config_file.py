"""Configurations read from YAML files, any value overridden by its dotted path, with errors of one line."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from multas_ray.config import Config
from multas_ray.documents import explain, parse_yaml, read_yaml
from multas_ray.errors import UserError, quoted
from multas_ray.storage import Location


def load_config(file: Location | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `dotted.path=value` overrides (values are YAML).

    Args:
        file: YAML file; None: overrides alone.
        overrides: such as "optim.lr=0.01".

    Raises:
        UserError: a value is missing, unknown or not allowed; names its path, the value and what is allowed.
    """
    return parse_config({} if file is None else read_yaml(file), overrides)


def parse_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Apply overrides to a configuration tree, in place, and validate it.

    Raises:
        UserError: see `load_config`.
    """
    try:
        return Config.model_validate(apply_overrides(tree, overrides))
    except ValidationError as error:
        raise UserError(explain(error, Config)) from None


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `dotted.path=value` overrides to a tree, in place, and return it.

    Raises:
        UserError: an override is not of this form, or its path leads through a value.
    """
    for override in overrides:
        _apply(tree, override)
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    shown = f"override {quoted(override)}"
    if not equals or not path:
        raise UserError(f"{shown}: write it as dotted.path=value")
    value = parse_yaml(text, shown)
    *parents, last = path.split(".")
    node = tree
    for key in parents:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"{shown}: {quoted(key)} is a value, not a section")
    node[last] = value
