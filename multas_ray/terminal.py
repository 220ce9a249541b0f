"""Consoles of rich on standard output and error, with its markup turned off: names may hold [brackets] and :words:."""

import os
import sys

from rich.console import Console

WIDE = 160
"""Width in columns of tables that are not printed to a terminal, such as in a job's log."""


def terminal(stderr: bool = False) -> Console:
    """Make the console for tables (standard output) or progress (standard error)."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(stderr=stderr, width=width, markup=False, emoji=False)
