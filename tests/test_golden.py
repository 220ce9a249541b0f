"""The method's golden numbers; see tests/golden."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden.__main__ import main
from tests.golden.checks import KINDS, check_file
from tests.shared import shared_path


@pytest.mark.parametrize("pattern", [kind.replace("\\.", ".").replace("(student|teacher)_.*", "*") for kind in KINDS])
def test_all_entries_pass(pattern: str) -> None:
    files = sorted(shared_path("golden").glob(pattern))
    assert files, f"no golden file like {pattern}"
    for file in files:
        results = list(check_file(file))
        assert len(results) > 1
        assert [result for result in results if not result.passed] == []


def test_a_wrong_number_a_missing_entry_and_an_unknown_file_fail(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shared_path("golden")
    for name in ("schedule.npz", "seg_metrics.npz"):
        shutil.copy(folder / name, tmp_path / name)
    assert main(str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "12 passed, 0 failed"
    with np.load(folder / "schedule.npz") as stored:
        arrays = dict(stored)
    np.savez(tmp_path / "schedule.npz", **arrays | {"lr": arrays["lr"] * (1 + 1e-6), "momentum": np.array(0.9)})
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    assert main(str(tmp_path)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("FAIL")] == [
        "other.npz",
        "schedule/lr",
        "schedule/momentum",
    ]
    assert lines[-1] == "11 passed, 3 failed"


def test_a_folder_without_numbers_fails(tmp_path: Path) -> None:
    assert main(str(tmp_path)) == 1
