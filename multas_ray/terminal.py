"""Standard output and error for rich, with names as they are: it would read [brackets] and :words: as its own."""

import os
import sys

from rich.console import Console

WIDE = 160
"""Columns of a table that goes to no terminal, such as a job's log."""


def terminal(stderr: bool = False) -> Console:
    """Where tables and progress are printed."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(stderr=stderr, width=width, markup=False, emoji=False)
