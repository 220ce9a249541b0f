"""Real images that some tests use where they are present."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
"""The repository."""


def shared_path(*parts: str) -> Path:
    """A path in the shared folder ($MULTAS_SHARED, or beside the repository); skips the test if it is absent."""
    path = Path(os.environ.get("MULTAS_SHARED", ROOT.parent / "shared")).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real images here: {path} is missing")
    return path
