"""Jobs run in this process."""

import runpy
import sys

import pytest

from tests.support.shared import ROOT


def call(monkeypatch, capsys, job: str, *arguments: str) -> tuple[int, list[str]]:
    """Run a job in this process: its exit code and the lines it wrote to standard error."""
    monkeypatch.setattr(sys, "argv", [job, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "jobs" / job), run_name="__main__")
    return stop.value.code, capsys.readouterr().err.strip().splitlines()
