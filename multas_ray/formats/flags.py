"""Command-line flags made from the fields of a format's options."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from multas_ray.cli import at_least
from multas_ray.documents import explain
from multas_ray.errors import UserError
from multas_ray.formats.source import Options

Chosen = TypeVar("Chosen", bound=Options)


@dataclass(frozen=True)
class FromText:
    """The mark of a type whose values are written in a form of their own on the command line."""

    parse: Callable[[str], Any]
    """The value of a flag's text. It raises `argparse.ArgumentTypeError`, or a `UserError` that names the flag."""


def folder(text: str) -> Path:
    """An existing folder."""
    try:
        if Path(text).is_dir():
            return Path(text)
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        pass
    raise argparse.ArgumentTypeError(f"{text}: no such folder")


def fraction(text: str) -> float:
    """A number of 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a fraction of 0 to 1 is needed")
    return value


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r}: names with commas between them are needed")
    return parts


ExistingFolder = Annotated[Path, FromText(folder)]
Fraction = Annotated[float, Field(ge=0, le=1), FromText(fraction)]
Names = Annotated[tuple[str, ...], FromText(names)]


def add_flags(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Add a flag for each field of a format's options.

    The flag has the field's name (`follow_links`: `--follow-links`), its docstring and default as help, and its title
    as the placeholder of its value. A field without default is required, a bool is a switch, a `Literal` a choice.
    """
    for name, field in options.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        # A flag that is not given is left to the default of its field.
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=_help(field))
            continue
        kind, marks = _kind(field)
        is_choice = get_origin(kind) is Literal
        parser.add_argument(
            flag,
            type=str if is_choice else _from_text(kind, marks),
            choices=get_args(kind) if is_choice else None,
            required=field.is_required(),
            default=argparse.SUPPRESS,
            metavar=field.title,
            help=_help(field),
        )


def parsed_options(options: type[Chosen], args: argparse.Namespace) -> Chosen:
    """The options that a command line gives by the flags of `add_flags`.

    Raises:
        UserError: they are refused by the options' own validators.
    """
    given = {name: getattr(args, name) for name in options.model_fields if hasattr(args, name)}
    try:
        return options(**given)
    except ValidationError as error:
        raise UserError(f"--{explain(error, options)}") from None


def _kind(field: FieldInfo) -> tuple[Any, list[Any]]:
    """The type of a field that is given, and the marks of that type."""
    kind, marks = field.annotation, list(field.metadata)
    if NoneType in get_args(kind):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is Annotated:
        kind, *inner = get_args(kind)
        marks += inner
    return kind, marks


def _from_text(kind: Any, marks: list[Any]) -> Callable[[str], Any]:
    """The function that makes a value of a flag's text."""
    for mark in marks:
        if isinstance(mark, FromText):
            return mark.parse
    if kind is int:
        least: list[Any] = [mark.ge for mark in marks if isinstance(mark, Ge)]
        most: list[Any] = [mark.le for mark in marks if isinstance(mark, Le)]
        return at_least(*least, *most) if least else int
    return kind


def _help(field: FieldInfo) -> str | None:
    """The docstring of a field, with its default where it has one."""
    words = [field.description or ""]
    if not field.is_required() and field.annotation is not bool and field.default is not None:
        words.append(f"(default {field.default})")
    # argparse takes % for one of its own placeholders.
    return " ".join(words).strip().replace("%", "%%") or None
