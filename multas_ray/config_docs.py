"""docs/config.md, made from the configuration's models.

python -m multas_ray.config_docs > docs/config.md
"""

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from multas_ray.config import Config

INTRO = """# Configuration

One YAML file a run; any value can be set on the command line by its dotted path
(`python jobs/train.py --config run.yaml optim.lr=0.01`). Unknown keys and values that are not allowed end the job with
exit code 2 and one line that says what is. This page is made from `multas_ray/config.py`:
`python -m multas_ray.config_docs > docs/config.md`.
"""
NAMES = {int: "whole number", float: "number", str: "text"}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def config_page() -> str:
    """The page as Markdown: a section a part of the tree, a row a field."""
    parts = [INTRO]
    for path, section, holder in sections("", Config):
        about = f"{_one_line(section.__doc__)} {_one_line(holder.description if holder else None)}".strip()
        parts.append(f"## {path}\n\n{about}\n")
        rows = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
        own = {name: field for name, field in section.model_fields.items() if _section_of(field) is None}
        default = holder.default if holder else None
        rows += [_row(name, field, getattr(default, name, field.default)) for name, field in own.items()]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def sections(
    path: str, section: type[BaseModel], holder: FieldInfo | None = None
) -> Iterator[tuple[str, type[BaseModel], FieldInfo | None]]:
    """The parts of the tree that hold values, by dotted path, each before its own parts, and the field that holds it,
    whose default may differ from the part's own."""
    own = [(name, _section_of(field)) for name, field in section.model_fields.items()]
    if path and any(part is None for _, part in own):
        yield path, section, holder
    for name, part in own:
        if part is not None:
            yield from sections(f"{path}.{name}" if path else name, part, section.model_fields[name])


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The part of the tree that a field holds, None for a value."""
    choices = get_args(field.annotation) or (field.annotation,)
    return next((kind for kind in choices if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


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
    """As YAML has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    print(config_page(), end="")
