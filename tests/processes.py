"""Processes that a test started, by their names: Ray's come and go while they are looked at."""

import contextlib

import psutil


def named(name: str, parent: int | None = None) -> list[psutil.Process]:
    """The descendants of a process (default: this one) that have this in their command lines."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found
