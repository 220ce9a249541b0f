import json
import subprocess
from types import SimpleNamespace

import pytest

from multas_ray.data.index import read_index
from multas_ray.report.run_report import run_report
from multas_ray.run_folder import ATTEMPTS
from multas_ray.storage import StoragePath
from multas_ray.train.provenance import commit, describe_attempt, record_attempt, source_digest


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one commit, and that commit."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "code.py").write_text("x = 1\n")

    def git(*arguments: str) -> str:
        own = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        return subprocess.check_output(["git", "-C", folder, *own, *arguments], text=True).strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    return folder, git("rev-parse", "HEAD")


def test_the_commit_of_a_checkout_is_known_and_whether_it_was_changed(checkout):
    folder, head = checkout
    assert commit(folder) == head
    before = source_digest(folder)
    (folder / "code.py").write_text("x = 2\n")
    assert commit(folder) == f"{head}-dirty"
    assert source_digest(folder) != before


def test_code_that_came_without_git_has_its_commit_from_its_image_or_its_sender(tmp_path, monkeypatch):
    monkeypatch.delenv("MULTAS_COMMIT", raising=False)
    assert commit(tmp_path) is None
    monkeypatch.setenv("MULTAS_COMMIT", "abc")
    assert commit(tmp_path) == "abc"
    (tmp_path / "COMMIT").write_text("def\n")
    assert commit(tmp_path) == "def"
    # An image that was built without saying it.
    (tmp_path / "COMMIT").write_text("\n")
    assert commit(tmp_path) is None


def test_the_report_tells_what_ran_at_every_start(scenes_path, tmp_path):
    splits = {role: read_index(scenes_path, role) for role in ("train", "val")}
    run = StoragePath(tmp_path)
    for start in (0, 40):
        record_attempt(run, describe_attempt(start, splits, {"det": SimpleNamespace(digest="d" * 64)}, "bfloat16"))
    lines = [json.loads(line) for line in (tmp_path / ATTEMPTS).read_text().splitlines()]
    assert [line["from_step"] for line in lines] == [0, 40]
    assert len({line["data"][role] for line in lines for role in splits}) == 2, "a digest a split, the same each time"
    page = run_report(run).read_text()
    for digest in (lines[0]["code"]["digest"], *lines[0]["data"].values(), "d" * 64):
        assert page.count(f"<td>{digest[:12]}</td>") == 2
