"""Folders as a whole."""

from pathlib import Path


def files_below(folder: Path) -> dict[str, bytes]:
    """The bytes of each file below a folder, by its path in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
