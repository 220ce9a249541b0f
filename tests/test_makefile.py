"""`make` on machines that are not ours: which Python it takes, and what it makes of an interrupted installation.

The interpreters are scripts, so nothing is installed.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.shared import ROOT

NAMES = ("python3.11", "python3.12", "python3.13", "python3.14", "python3")
PYTHON = """#!/bin/sh
# A Python of {version} as far as `make` needs it. It notes its calls, and a venv that it makes has it as its python.
log={log}
case "$1 $2" in
"-c import"*) exec {real} -c "import sys; sys.version_info = {version}; $2" ;;
"-c ") exit 0 ;;
"-m venv") echo "$(basename "$0") venv" >> $log; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
"-m pip") test -z "$KILLED" || kill -9 $$
    echo "pip $(ls .venv | xargs)" >> $log
    echo "Collecting numpy"
    echo "Downloading numpy-2.whl (60 kB)"
    echo "Downloading torch-2.whl (900.1 MB)"
    echo "Installing collected packages: numpy, torch"
    test -z "$BROKEN" || {{ echo "ERROR: no route to host" >&2; exit 3; }}
    touch .venv/half.py ;;
*) echo "ran $*" >> $log ;;
esac
"""
SHIM = """#!/bin/sh
echo "pyenv: $(basename "$0"): command not found" >&2
exit 127
"""


class Machine:
    """A checkout with nothing but `make` and some interpreters."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.programs, self.log = folder / "a checkout", folder / "bin", folder / "log"
        self.checkout.mkdir()
        self.programs.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.checkout)
        # No interpreter of this machine is found behind these.
        for name in NAMES:
            self.program(name, SHIM)

    def program(self, name: str, text: str) -> Path:
        """Write a program that is found by its name."""
        file = self.programs / name
        file.write_text(text)
        file.chmod(0o755)
        return file

    def python(self, name: str, version: tuple[int, int]) -> Path:
        """Add an interpreter."""
        real = shutil.which("python3", path=os.defpath) or "/usr/bin/python3"
        return self.program(name, PYTHON.format(version=version, log=self.log, real=real))

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `make`, with its calls noted anew."""
        self.log.write_text("")
        own = {"PATH": f"{self.programs}:{os.defpath}", "HOME": str(self.checkout)}
        command = ["make", *arguments]
        return subprocess.run(command, cwd=self.checkout, env=own | environment, capture_output=True, text=True)

    def calls(self) -> list[str]:
        """What the interpreters were asked for."""
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


DEMO = "ran jobs/demo.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_python_is_found_by_any_of_its_names(machine: Machine, name: str) -> None:
    machine.python(name, (3, 11))
    done = machine.make("demo")
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [f"{name} venv", "pip bin", DEMO]
    assert machine.make("demo").stdout.splitlines() == [".venv/bin/python jobs/demo.py"]
    assert machine.calls() == [DEMO], "it is installed once"


def test_a_python_that_is_too_old_or_too_new_is_passed_over(machine: Machine) -> None:
    machine.python("python3.11", (3, 15))
    machine.python("python3.12", (3, 10))
    machine.python("python3", (3, 14))
    assert machine.make("demo").returncode == 0
    assert machine.calls()[0] == "python3 venv"


def test_the_python_that_is_named_wins(machine: Machine) -> None:
    machine.python("python3.11", (3, 11))
    own = machine.python("my python", (3, 13))
    assert machine.make("demo", f"PYTHON={own}").returncode == 0
    assert machine.calls()[0] == "my python venv"


@pytest.mark.parametrize(("named", "words"), [((), " ".join(NAMES)), (("PYTHON=python2",), "among: python2;")])
def test_without_a_python_one_line_says_what_was_looked_for(
    machine: Machine, named: tuple[str, ...], words: str
) -> None:
    machine.python("python3", (3, 10))
    for goals in ((), ("test",), ("-j4", "check")):
        done = machine.make(*goals, *named)
        assert done.returncode == 2
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        assert "no Python 3.11 to 3.14" in line
        assert words in line
    assert machine.calls() == []
    assert not (machine.checkout / ".venv").exists()
    assert machine.make("clean").returncode == 0, "needs none"


def test_an_installation_shows_that_it_is_under_way(machine: Machine) -> None:
    machine.python("python3", (3, 12))
    assert machine.make("demo").stdout.splitlines() == [
        "installing into .venv with python3: about 6.5 GB, 3 to 7 minutes",
        "Downloading torch-2.whl (900.1 MB)",
        "Installing collected packages",
        ".venv/bin/python jobs/demo.py",
    ]


def half_made(machine: Machine) -> None:
    """Killed while the venv was made: there is a python, but no pip."""
    (machine.checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(machine.programs / "python3", machine.checkout / ".venv" / "bin" / "python")


def killed(machine: Machine) -> None:
    """pip killed in an installation."""
    assert machine.make("demo", KILLED="1").returncode == 2


def killed_in_an_update(machine: Machine) -> None:
    """pip killed when what is to be installed had changed."""
    assert machine.make("demo").returncode == 0
    os.utime(machine.checkout / ".venv" / ".ready", (0, 0))
    assert machine.make("demo", KILLED="1").returncode == 2


def interpreter_gone(machine: Machine) -> None:
    """The Python that the venv was made with was uninstalled."""
    assert machine.make("demo").returncode == 0
    (machine.checkout / ".venv" / "bin" / "python").unlink()


@pytest.mark.parametrize("interrupt", [half_made, killed, killed_in_an_update, interpreter_gone])
def test_the_same_command_makes_an_interrupted_installation_anew(
    machine: Machine, interrupt: Callable[[Machine], None]
) -> None:
    machine.python("python3", (3, 12))
    interrupt(machine)
    (machine.checkout / ".venv" / "half.py").touch()
    assert machine.make("demo").returncode == 0
    assert machine.calls() == ["python3 venv", "pip bin", DEMO], "from an empty venv"
    machine.make("demo")
    assert machine.calls() == [DEMO]


def test_an_update_installs_into_what_is_there(machine: Machine) -> None:
    machine.python("python3", (3, 12))
    machine.make("demo")
    os.utime(machine.checkout / ".venv" / ".ready", (0, 0))
    assert machine.make("demo").returncode == 0
    assert machine.calls() == ["pip bin half.py", DEMO]
    machine.make("demo")
    assert machine.calls() == [DEMO]


def test_a_failing_installation_ends_with_pips_words_and_is_tried_again(machine: Machine) -> None:
    machine.python("python3", (3, 12))
    done = machine.make("demo", BROKEN="1")
    assert done.returncode == 2
    assert "ERROR: no route to host" in done.stdout
    assert machine.make("demo").returncode == 0
    assert machine.calls()[0] == "python3 venv"
    os.utime(machine.checkout / ".venv" / ".ready", (0, 0))
    assert machine.make("demo", BROKEN="1").returncode == 2
    assert machine.make("demo").returncode == 0
    assert machine.calls()[0] == "python3 venv", "what an update has left is not trusted"
