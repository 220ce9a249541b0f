"""Page docs/config.md, made from the configuration's models.

python -m multas_ray.config_docs > docs/config.md
"""

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from multas_ray.config import Config
from multas_ray.documents import models_in

INTRO = """# Configuration

One YAML file a run; any value can be set on the command line by its dotted path
(`python jobs/train.py --config run.yaml optim.lr=0.01`). Unknown keys and values that are not allowed end the job with
exit code 2 and one line that says what is allowed. This page is made from `multas_ray/config.py`:
`python -m multas_ray.config_docs > docs/config.md`.
"""
NAMES = {int: "whole number", float: "number", str: "text", Any: "value"}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def config_page() -> str:
    """Make the page as Markdown: one section for each part of the tree, one row for each field."""
    parts = [INTRO]
    for path, section, holder in sections("", Config):
        about = f"{_one_line(section.__doc__)} {_one_line(holder.description if holder else None)}".strip()
        parts.append(f"## {path}\n\n{about}\n")
        rows = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
        values = {name: field for name, field in section.model_fields.items() if _section_of(field) is None}
        default = holder.default if holder else None
        rows += [_row(name, field, getattr(default, name, field.default)) for name, field in values.items()]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def sections(
    path: str, section: type[BaseModel], holder: FieldInfo | None = None
) -> Iterator[tuple[str, type[BaseModel], FieldInfo | None]]:
    """Walk the parts of the tree that hold values, each before the parts inside it.

    Args:
        path: dotted path of `section`, empty for the whole tree.
        section: part of the tree to begin with.
        holder: field that holds `section`.

    Yields:
        Dotted path, part, and the field that holds it, whose default may differ from the part's.
    """
    children = [(name, _section_of(field)) for name, field in section.model_fields.items()]
    if path and any(part is None for _, part in children):
        yield path, section, holder
    for name, part in children:
        if part is not None:
            field = section.model_fields[name]
            named = f"{name}.<name>" if get_origin(field.annotation) is dict else name
            yield from sections(f"{path}.{named}" if path else named, part, field)


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the part of the tree that a field holds, None for a value."""
    return next(models_in(field.annotation), None)


def _row(name: str, field: FieldInfo, default: Any) -> str:
    limits = [
        f"{sign} {getattr(rule, key):g}"
        for rule in field.metadata
        for key, sign in LIMITS.items()
        if hasattr(rule, key)
    ]
    allowed = ", ".join([_kind(field.annotation), *limits])
    shown = "**needed**" if field.is_required() else f"`{_text(default)}`"
    cells = (f"`{name}`", allowed, shown, _one_line(field.description))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{_text(value)}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_kind(choice) for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_several(*get_args(annotation))}"
    if get_origin(annotation) is dict:
        key, value = get_args(annotation)
        return f"mapping of {_several(key)} to {_several(value)}"
    return {bool: "`true`, `false`", type(None): "`null`"}.get(annotation) or NAMES[annotation]


def _several(annotation: Any) -> str:
    return f"{NAMES[annotation]}s" if annotation in NAMES else _kind(annotation)


def _text(value: Any) -> str:
    """Write a default value as in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    print(config_page(), end="")
