import pickle

import pytest

from multas_ray.errors import UserError
from multas_ray.storage import StoragePath


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
