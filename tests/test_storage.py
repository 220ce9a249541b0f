import os
import pickle

import pytest

from multas_ray.errors import UserError
from multas_ray.storage import StoragePath, read_lines


def test_a_local_path_is_used_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = StoragePath("a")
    assert str(folder) == str(tmp_path / "a")
    file = folder / "b" / "c.txt"
    assert not file.exists()
    assert folder.names() == []
    file.write_text("first\n")
    file.append_text("second\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == file.read_text() == "first\nsecond\n"
    assert folder.names() == ["b"]
    assert file.name == "c.txt"
    assert pickle.loads(pickle.dumps(file)) == file
    with file.open() as stream:
        assert stream.read(5) == b"first"
    (folder / "b").delete()
    assert folder.names() == []
    with pytest.raises(FileNotFoundError):
        file.read_bytes()


def test_a_file_is_never_seen_half_written(tmp_path):
    file = StoragePath(tmp_path) / "result.json"
    file.write_text("old")
    with pytest.raises(TypeError):
        file.write_bytes("no bytes")
    assert file.read_text() == "old"


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(UserError, match="set them in the environment") as refused:
        StoragePath("s3://name:secret@bucket/run")
    assert "secret" not in str(refused.value)
    assert "name" not in str(refused.value)


def test_an_unknown_filesystem_is_refused():
    with pytest.raises(UserError, match="nowhere://x/y: not a place that pyarrow can use"):
        StoragePath("nowhere://x/y")


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(UserError, match="not a path") as refused:
        StoragePath(path)
    assert str(refused.value).isprintable()


def test_a_name_that_is_too_long_is_no_file(tmp_path):
    file = StoragePath(tmp_path) / ("n" * 300)
    assert not file.exists()
    with pytest.raises(OSError, match="too long"):
        file.read_bytes()


@pytest.mark.timeout(20)
def test_what_never_ends_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", "."):
        with pytest.raises(OSError, match="a folder, device or pipe, not a file"):
            (StoragePath(tmp_path) / name).read_bytes()


def test_lines_are_the_objects_among_them(tmp_path):
    file = StoragePath(tmp_path) / "lines.jsonl"
    assert read_lines(file) == []
    others = [b"", b"\xff", b"5", b"null", b"[]", b"[" * 100_000, b"9" * 5000, b'{"b": "\xe9"}', b"{", b'{"c":\r']
    file.write_bytes(b'{"a": 1}\n' + b"\n".join(others) + b'\n{"a": "\xc3\xa9\xe2\x80\xa8"}\r\n{"a": 3')
    assert read_lines(file) == [{"a": 1}, {"a": "\u00e9\u2028"}]
