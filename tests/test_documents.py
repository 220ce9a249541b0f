"""Text, JSON and YAML of anybody: the value, or one line on what is wrong."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from multas_ray.documents import MOST_NODES, decode_text, parse_json, parse_yaml, read_model, read_text, read_yaml
from multas_ray.errors import UserError


class Model(BaseModel, extra="forbid"):
    """What `read_model` is to read."""

    name: str
    size: int = 1
    inside: "Model | None" = None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_utf_8_or_what_its_byte_order_mark_says(encoding: str) -> None:
    assert decode_text("é\n".encode(encoding), "x") == "é\n"
    assert decode_text(b"\xfe\xff\0\xe9\0\n", "x") == "é\n"


@pytest.mark.parametrize(("data", "words"), [(b"caf\xe9", r"UTF-8 \(byte 3\)"), (b"\xff\xfea", r"UTF-16 \(byte")])
def test_other_text_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match=rf"^{tmp_path}/x: not text in {words}.*; save it as UTF-8"):
        read_text(tmp_path / "x")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name, words in (("x", "No such file"), (".", "a folder, device or pipe"), ("n" * 300, "name too long")):
        with pytest.raises(UserError, match=rf"(?i)cannot be read \(.*{words}"):
            read_text(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[" * 100_000, "thousands of levels deep"),
        ('{"a":' * 100_000, "thousands of levels deep"),
        ('{"\\ud800": 1}', "surrogates not allowed"),
    ],
    ids=["empty", "quotes", "number", "lists", "objects", "half a character"],
)
def test_what_is_no_json_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=f"^file: .*{words}"):
        parse_json(text, "file")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3\nb: 010\nc: on\nd: ~\ne: TRUE", {"a": 0.001, "b": 10, "c": "on", "d": None, "e": True}),
        ("[0x1F, 0o17, -3, .5, 1., -.inf, 12:30:00]", [31, 15, -3, 0.5, 1.0, float("-inf"), "12:30:00"]),
        ("2020-01-01", "2020-01-01"),
        ("!!str 1", "1"),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("", None),
    ],
)
def test_yaml_is_plain_values(text: str, value: Any) -> None:
    assert parse_yaml(text, "x") == value


BILLION = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "not YAML"),
        ("a: !!timestamp x", "not YAML"),
        ("a: !!binary x", "not YAML"),
        ("a: !!bool x", "no bool"),
        ("a: !!int 9" + "9" * 5000, "not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("a: !!set {x}", "not YAML"),
        ("{[1, 2]: 3}", "not YAML"),
        ("a: \x07", "not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a: &x [*x]", "too deep|levels deep"),
        ("[" * 2000 + "]" * 2000, "too deep|levels deep"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "more than 50 levels deep"),
        (BILLION, f"more than {MOST_NODES:,} values"),
        (MERGES, "merges too much|values"),
    ],
    ids=range(15),
)
def test_other_yaml_is_refused_in_a_line(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse_yaml(text, "file")
    assert str(caught.value).startswith("file: ")
    assert str(caught.value).isprintable()


def test_a_yaml_file_holds_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for text, value in (("", {}), ("a: 1", {"a": 1})):
        file.write_text(text)
        assert read_yaml(file) == value
    file.write_text("[1]")
    with pytest.raises(UserError, match=rf"{file}: a mapping of sections is needed, found list"):
        read_yaml(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "Input should be a valid dictionary"),
        ("{}", "name: missing, and it has no default"),
        ('{"nam": 1}', "nam: no such key; allowed here: name, size, inside"),
        ('{"name": "x", "inside": {"name": "y", "b": 1}}', r"inside\.b: no such key; allowed here: name, size, inside"),
        ('{"name": "x", "size": "' + "9\\n" * 500 + '"}', r"size: .* \(given: '9\\n9\\n.* … .*'\)"),
        ('{"name": "x", "\\u001b[31m": 1}', r"^\S+x\.json: \\x1b\[31m: no such key"),
    ],
)
def test_a_model_s_file_is_refused_by_its_first_wrong_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_model(file, Model)
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def outcome_of(parse: Callable[[str, object], Any], data: bytes) -> str:
    """What becomes of a document that may be broken."""
    try:
        parse(decode_text(data, "x"), "x")
    except UserError as error:
        return "refused" if str(error).isprintable() else "not one line"
    return "read"


def test_changed_bytes_of_documents_are_read_or_refused() -> None:
    whole = b'{"name": "caf\xc3\xa9", "a": [1, 2.5e3, null, true], "b": {"c": "\\u00e9", "d": &x [!!int 1], "e": *x}}'
    chosen = random.Random(3)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(chosen.randint(1, 4)):
            place = chosen.randrange(len(data))
            data[place : place + chosen.randint(0, 2)] = bytes(chosen.choices(range(256), k=chosen.randint(0, 2)))
        for parse in (parse_json, parse_yaml):
            outcomes[outcome_of(parse, bytes(data))] += 1
    assert min(outcomes.values()) > 100
