"""dataset.json as people write it: one line on what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from tests.support.shards import INFO


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 3, "sources": {}}, "schema_version 3, this version of multas-ray reads 1 and 2$"),
        ({"schema_version": "1\n"}, r"schema_version '1\\n', this version"),
        ({"det_classes": ["cat", "dog", "cat"]}, "det_classes: 'cat' stands there 2 times"),
        ({"det_classes": ["cat", ""]}, r"det_classes\.1: String should have at least 1 character"),
        ({"det_classes": ["cat", 3]}, r"det_classes\.1: Input should be a valid string \(given: 3\)"),
        ({"det_classes": ["\ud800"]}, "surrogates not allowed"),
        ({"seg_classes": [str(number) for number in range(256)]}, "seg_classes: .* at most 255 items"),
        ({"splits": {"../other": {}}}, r"splits\.\.\./other.*: a plain folder name is needed"),
        ({"splits": {".hidden": {}}}, "a plain folder name is needed"),
        ({"splits": {"": {}}}, "at least 1 character"),
        ({"splits": {"train": {"both": -1}}}, r"splits\.train\.both: .*greater than or equal to 0"),
        ({"splits": {"train": {"all": 1}}}, r"splits\.train\.all"),
        ({"splits": {"train": {"both": 1e300}}}, r"splits\.train\.both"),
        ({"clases": []}, "clases: no such key; allowed here: name, schema_version, det_classes"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line_that_names_the_key(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(INFO | changes))
    with pytest.raises(UserError, match=rf"^{tmp_path}/dataset\.json: .*{words}") as caught:
        read_info(str(tmp_path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not text in UTF-16"),
        (b'{"name": "\xe9"}', "not text in UTF-8 .byte 10.; save it as UTF-8"),
        (b"[1]", "valid dictionary"),
        (b"[" * 100_000, "thousands of levels deep"),
        (b'{"name": ' + b"9" * 10_000 + b"}", "not JSON"),
    ],
    ids=["empty", "half a character", "latin-1", "list", "deep", "number"],
)
def test_what_is_no_description_is_one_line_too(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"dataset\.json: .*{words}"):
        read_info(str(tmp_path))


def test_255_pixel_classes_and_names_of_any_script_are_read(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(253)] + ["猫", "[/red] \n"]
    (tmp_path / "dataset.json").write_text(json.dumps(INFO | {"seg_classes": names}))
    assert read_info(str(tmp_path)).seg_classes == names
    with pytest.raises(UserError, match=r"no data set here \(dataset\.json is missing\)"):
        read_info(str(tmp_path / "nowhere"))
