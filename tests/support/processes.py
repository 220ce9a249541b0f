"""Processes that a test started, by their names: Ray's come and go while they are looked at."""

import contextlib
import subprocess

import psutil

PATIENCE = 1200
"""Seconds after which a job of a test counts as hung; nothing is measured by it. Slow machines take a third of it."""


def named(name: str, parent: int | None = None) -> list[psutil.Process]:
    """The descendants of a process (default: this one) that have this in their command lines."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_family(job: subprocess.Popen, name: str = "") -> None:
    """SIGKILL of the job's processes that have this in their names, of all of them without a name."""
    found = named(name, job.pid) if name else [psutil.Process(job.pid), *named("", job.pid)]
    assert found, f"no process {name}"
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
