"""Text, JSON and YAML files, read as data: anything wrong with a file is an error of one line."""

import codecs
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from multas_ray.errors import UserError, one_line, quoted
from multas_ray.storage import Location, StoragePath, json_value

Model = TypeVar("Model", bound=BaseModel)

MOST_NODES, DEEPEST = 100_000, 50
"""Limits of a YAML document: number of values and levels of nesting. An alias counts each time that it is used: nine
lines of aliases can stand for a billion values."""
BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def decode_text(data: bytes, source: object) -> str:
    """Decode text as UTF-8, or as its byte order mark says.

    Notepad writes one before UTF-8, and PowerShell's `>` writes UTF-16 with one.

    Raises:
        UserError: the bytes are not text in that encoding.
    """
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not text in {encoding.upper()} (byte {error.start}); save it as UTF-8") from None


def read_text(file: Location) -> str:
    """Read a text file.

    Raises:
        UserError: the file cannot be read, or is not text.
    """
    place = StoragePath(file)
    try:
        data = place.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({os.strerror(error.errno) if error.errno else error})") from None
    return decode_text(data, file)


def parse_json(text: str, source: object) -> Any:
    """Parse a JSON document.

    Args:
        text: the document.
        source: name of the document in messages.

    Raises:
        UserError: `text` is not JSON.
    """
    try:
        return json_value(text)
    except ValueError as error:
        raise UserError(f"{source}: not JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{source}: not usable: lists or objects in one another, thousands of levels deep") from None


def read_json(file: Location) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    return parse_json(read_text(file), file)


def read_model(file: Location, model: type[Model], read: Callable[[Location], Any] = read_json) -> Model:
    """Read a file and validate it.

    Args:
        file: a JSON or YAML file.
        model: pydantic model of the file.
        read: `read_json` or `read_yaml`.

    Raises:
        UserError: the file cannot be read, or does not fit the model.
    """
    try:
        return model.model_validate(read(file))
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error, model)}") from None


class YamlLoader(yaml.SafeLoader):
    """Loader of safe YAML: plain values, and `<<` to merge a mapping into another.

    Values are mappings, lists, strings, numbers, booleans and null, written as in YAML 1.2 (`on` is a word, 1e-3 a
    number, 010 a ten). Dates, sets and bytes have no use here; they stay words, or are refused.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the pairs that `<<` merges before the mapping's other pairs; of several mappings, the first wins.

        Replaces PyYAML's, in which a few lines of merges stand for more than fits into memory.
        """
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        direct = []
        for key, value in node.value:
            if key.tag != MERGE:
                direct.append((key, value))
                continue
            for part in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                if not isinstance(part, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(None, None, "<< merges mappings", part.start_mark)
                self.flatten_mapping(part)
                merged += part.value
                if len(merged) > MOST_NODES:
                    raise yaml.constructor.ConstructorError(None, None, "<< merges too much", part.start_mark)
        node.value = merged + direct


NULL, BOOLEAN, INTEGER, FLOAT, MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "merge")
)
PATTERNS = {
    NULL: (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    BOOLEAN: (r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    INTEGER: (r"([-+]?\d+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    FLOAT: (
        r"([-+]?(\.\d+|\d+\.\d*|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}
YamlLoader.yaml_implicit_resolvers = {}
YamlLoader.add_implicit_resolver(MERGE, re.compile("<<$"), ["<"])
for _tag, (_pattern, _firsts) in PATTERNS.items():
    YamlLoader.add_implicit_resolver(_tag, re.compile(_pattern), _firsts)


def _scalar(tag: str, convert: Any) -> None:
    """Register the constructor of a scalar tag. A tag may be explicit (`!!int x`), so its text may be anything."""
    pattern = re.compile(PATTERNS[tag][0])

    def construct(loader: YamlLoader, node: yaml.ScalarNode) -> Any:
        if not pattern.match(loader.construct_scalar(node)):
            raise yaml.constructor.ConstructorError(None, None, f"no {tag.rpartition(':')[2]}", node.start_mark)
        try:
            return convert(node.value)
        except ValueError as error:  # more digits than Python reads
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None

    YamlLoader.add_constructor(tag, construct)


def _integer(text: str) -> int:
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_scalar(NULL, lambda text: None)
_scalar(BOOLEAN, lambda text: text.lower() == "true")
_scalar(INTEGER, _integer)
_scalar(FLOAT, lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())))
PLAIN = {NULL, BOOLEAN, INTEGER, FLOAT, *(f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map"))}
YamlLoader.yaml_constructors = {
    tag: construct for tag, construct in YamlLoader.yaml_constructors.items() if tag is None or tag in PLAIN
}


def parse_yaml(text: str, source: object) -> Any:
    """Parse a YAML document.

    Args:
        text: the document.
        source: name of the document in messages.

    Raises:
        UserError: `text` is not YAML, has values of other than plain types, or stands for more values than a
            configuration can have.
    """
    try:
        value = yaml.load(text, YamlLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError) as error:  # a key that is a list; characters that YAML does not allow
        raise UserError(f"{source}: not YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{source}: not usable: lists or mappings in one another, too deep") from None
    _check_extent(value, source)
    return value


def _check_extent(value: Any, source: object) -> None:
    nodes, level = 1, [value]
    for _ in range(DEEPEST):
        level = [node for node in level if isinstance(node, dict | list)]
        nodes += sum(map(len, level))
        if nodes > MOST_NODES:
            raise UserError(f"{source}: not usable: it stands for more than {MOST_NODES:,} values")
        if not level:
            return
        level = [child for node in level for child in (node if isinstance(node, list) else node.values())]
    raise UserError(f"{source}: not usable: lists or mappings in one another, more than {DEEPEST} levels deep")


def read_yaml(file: Location) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    tree = parse_yaml(read_text(file), file)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{file}: a mapping of sections is needed, found {type(tree).__name__}")
    return tree


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Explain in one line why a tree does not fit a model."""
    # An unknown key first: it often is the cause of the others, such as a misspelt key that is then missing.
    first = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    # A blank part is the tag of a choice between types.
    path = ".".join(one_line(part, 60) for part in first["loc"] if str(part).strip()) or "config"
    if first["type"] == "extra_forbidden":
        return f"{path}: no such key; allowed here: {', '.join(_keys_beside(first['loc'], model))}"
    if first["type"] == "missing":
        return f"{path}: missing, and it has no default"
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"]:
        return f"{path}: {message} (given: {quoted(first['input'])})"
    return message


def _keys_beside(location: tuple[int | str, ...], model: Any) -> list[str]:
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue
        model = next(models_in(field.annotation), model)
    return list(model.model_fields)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models in the type of a field, however deep: those of a choice, a list, or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)
