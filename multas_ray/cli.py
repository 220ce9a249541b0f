"""The command line that all jobs share: exit codes, one-line errors, an answer to Ctrl-C. Imports nothing heavy."""

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from multas_ray.errors import RunError, UserError, first_line, root_cause
from multas_ray.stop import answer_signals

OK, FAILED, UNUSABLE = 0, 1, 2
"""Exit codes: done; the job failed; unusable arguments, configuration or data. `answer_signals` has two others."""


def run_job(main: Callable[[], None]) -> NoReturn:
    """Run a job's main and end the process: 0 done, 1 failed, 2 unusable input; the reason is the last line."""
    hide_ray_log()
    with answer_signals():
        code = _run(main)
    sys.exit(code)


RAY_LOG = r"^\[[-0-9]+ [0-9:,]+ [IWE] [0-9]+ [0-9]+\] "
"""Beginning of a line that Ray's C++ logs and that is not fatal."""


def hide_ray_log() -> None:
    """Filter Ray's C++ log out of the native standard error of this process.

    A job survives what Ray calls errors there. Python's own standard error is moved to another file descriptor; where
    it has been replaced, as by a test, nothing is done.
    """
    stderr = sys.stderr
    if stderr is not sys.__stderr__ or stderr is None:
        return
    # In a process that outlives a crash, and in a session that a terminal's Ctrl-C does not reach.
    command = ["grep", "--line-buffered", "-v", "-E", RAY_LOG]
    try:
        descriptor = os.dup(2)
        grep = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=descriptor, start_new_session=True)
    except OSError:
        return
    assert grep.stdin is not None
    os.dup2(grep.stdin.fileno(), 2)
    grep.stdin.close()
    unfiltered = os.fdopen(descriptor, "w", 1, stderr.encoding, "backslashreplace")
    sys.stderr = sys.__stderr__ = unfiltered  # type: ignore[misc]


def _run(main: Callable[[], None]) -> int:
    try:
        main()
        return OK
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, UserError):
            print(f"error: {cause}", file=sys.stderr)
            return UNUSABLE
        if isinstance(cause, RunError):
            print(f"failed: {cause}", file=sys.stderr)
        else:
            traceback.print_exc()
            print(f"failed: {type(cause).__name__}: {first_line(cause)}", file=sys.stderr)
        return FAILED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError`, which `run_job` prints."""
        raise UserError(f"{message} (see {self.prog} --help)")


def at_least(least: int, most: int = 2**31) -> Callable[[str], int]:
    """Make the type of an argument that is a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20) or not least <= int(text) <= most:
            upto = "on" if most == 2**31 else f"to {most}"
            raise argparse.ArgumentTypeError(f"{text}: a whole number from {least} {upto} is needed")
        return int(text)

    return parse
