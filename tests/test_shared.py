"""When a test on files of ../shared is skipped, and when that is a failure."""

from pathlib import Path

import pytest

from tests.support.shared import shared_path


def outcome(path: str) -> str:
    """What becomes of a test that uses this path."""
    try:
        return str(shared_path(path))
    except pytest.fail.Exception:
        return "failed"
    except pytest.skip.Exception:
        return "skipped"


@pytest.mark.parametrize(("ci", "without"), [(None, "skipped"), ("true", "failed")])
def test_in_ci_what_is_missing_from_a_shared_folder_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ci: str | None, without: str
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("MULTAS_SHARED", str(tmp_path / "shared"))
    assert outcome("here") == "skipped", "there is no shared folder at all"
    (tmp_path / "shared").mkdir()
    assert outcome("here") == without
    (tmp_path / "shared" / "here").touch()
    assert outcome("here") == str(tmp_path / "shared" / "here")
