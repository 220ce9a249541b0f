"""The method's golden numbers; see tests/golden."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden.__main__ import NUMBERS, main
from tests.golden.checks import check_file

FILES = [
    pytest.param(file, id=file.stem, marks=[pytest.mark.long] * file.stem.startswith("model_teacher"))
    for file in sorted(NUMBERS.glob("*.npz"))
]


@pytest.mark.parametrize("file", FILES)
def test_all_entries_pass(file: Path) -> None:
    results = list(check_file(file))
    assert len(results) > 1
    assert [result for result in results if not result.passed] == []


def test_the_numbers_of_every_part_of_the_method_are_here() -> None:
    """A file that got lost would be no failure of the test above."""
    assert {file.stem for file in NUMBERS.glob("*.npz")} == {
        *("anchors", "detection", "distillation", "voc_ap", "seg_metrics", "schedule"),
        *("model_student_resnet18_fpn_det+seg", "model_teacher_resnet50_pafpn_det", "model_teacher_resnet50_pafpn_seg"),
    }


def test_a_wrong_number_a_missing_entry_and_an_unknown_file_fail(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("schedule.npz", "seg_metrics.npz"):
        shutil.copy(NUMBERS / name, tmp_path / name)
    assert main(str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "12 passed, 0 failed"
    with np.load(NUMBERS / "schedule.npz", allow_pickle=False) as stored:
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


class Opened:
    """An object whose unpickling leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_numbers_are_not_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "schedule.npz", lr=np.array([Opened(tmp_path / "opened")], dtype=object))
    assert main(tmp_path) == 1
    assert capsys.readouterr().out.startswith("schedule.npz ")
    assert not (tmp_path / "opened").exists()


def test_a_folder_without_numbers_fails(tmp_path: Path) -> None:
    assert main(str(tmp_path)) == 1
