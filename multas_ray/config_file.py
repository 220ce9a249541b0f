"""Reading a configuration: a YAML file, any value of it overridden by its dotted path, and errors in one line."""

import os
import re
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from multas_ray.config import Config
from multas_ray.errors import UserError
from multas_ray.storage import Location, StoragePath


class YamlLoader(yaml.SafeLoader):
    """Safe YAML with the booleans and numbers of YAML 1.2: `on` is a word and 1e-3 a number."""


BOOLEAN, FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (BOOLEAN, FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
YamlLoader.add_implicit_resolver(BOOLEAN, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
YamlLoader.add_implicit_resolver(
    FLOAT,
    re.compile(r"[-+]?(\.\d+|\d+\.\d*|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def load_config(file: Location | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `dotted.path=value` overrides (values are YAML).

    Raises:
        UserError: one line that names the path, what was given and what is allowed.
    """
    return parse_config({} if file is None else read_yaml(file), overrides)


def read_yaml(file: Location) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        tree = yaml.load(StoragePath(file).read_text(), YamlLoader) or {}
    except OSError as error:
        raise UserError(f"--config {file}: {os.strerror(error.errno or 0)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file}: a mapping of sections is needed, found {type(tree).__name__}")
    return tree


def parse_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Validate a configuration tree, after its overrides, which change it.

    Raises:
        UserError: as `load_config`.
    """
    try:
        return Config.model_validate(apply_overrides(tree, overrides))
    except ValidationError as error:
        raise UserError(explain(error, Config)) from None


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tree itself, changed by `dotted.path=value`.

    Raises:
        UserError: one is not of this form, or leads through a value.
    """
    for override in overrides:
        _apply(tree, override)
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"override '{override}': write it as dotted.path=value")
    try:
        value = yaml.load(text, YamlLoader)
    except yaml.YAMLError:
        raise UserError(f"override '{override}': the value is not YAML") from None
    *parents, last = path.split(".")
    node = tree
    for key in parents:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"override '{override}': {key} is a value, not a section")
    node[last] = value


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with a tree that was to be such a model: one line."""
    # An unknown key first: it often is the cause of the others, such as a misspelt key that is then missing.
    first = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    path = ".".join(str(part) for part in first["loc"]) or "config"
    if first["type"] == "extra_forbidden":
        return f"{path}: no such key; allowed here: {', '.join(_keys_beside(first['loc'], model))}"
    if first["type"] == "missing":
        return f"{path}: missing, and it has no default"
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"]:
        return f"{path}: {message} (given: {first['input']!r})"
    return message


def _keys_beside(location: tuple[int | str, ...], model: Any) -> list[str]:
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
