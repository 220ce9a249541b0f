"""Files of ../shared that some tests use where it is present: real images, and definitions of Kubernetes' objects."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
"""The repository."""


def shared_path(*parts: str) -> Path:
    """A path in the shared folder ($MULTAS_SHARED, or beside the repository).

    Where it is absent the test is skipped. In CI (`CI=true`) that is a failure if there is a shared folder: then the
    file was lost on the way, and a skip would hide that the test no longer runs.
    """
    folder = Path(os.environ.get("MULTAS_SHARED", ROOT.parent / "shared"))
    path = folder.joinpath(*parts)
    if path.exists():
        return path
    if os.environ.get("CI") == "true" and folder.is_dir():
        pytest.fail(f"{path} is missing from the shared folder")
    pytest.skip(f"{path} is missing")
