"""What ran: for every start of a run, a line that says from which code, on which data, with which teachers."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import multas_ray
from multas_ray.config import Task
from multas_ray.data.index import Index
from multas_ray.run_folder import ATTEMPTS
from multas_ray.storage import StoragePath
from multas_ray.teacher.teacher import TeacherSpec

PACKAGE = Path(multas_ray.__file__).parent


def describe_attempt(
    start: int, splits: Mapping[str, Index], specs: Mapping[Task, TeacherSpec], precision: str
) -> dict[str, Any]:
    """What is about to run.

    Args:
        start: step that it goes on from.
        splits: the data set's, by their role.
        precision: what `train.precision` came to.

    Returns:
        started (local time), from_step; code: commit (None if it is not known) and digest of the package's source;
        precision; versions; data and teachers: digests.
    """
    return {
        "started": f"{datetime.now():%F %T}",
        "from_step": start,
        "code": {"commit": commit(PACKAGE.parent), "digest": source_digest(PACKAGE)},
        "precision": precision,
        "versions": {name: version(name) for name in ("ray", "torch", "torchvision")},
        "data": {role: index.digest for role, index in splits.items()},
        "teachers": {task: spec.digest for task, spec in specs.items()},
    }


def record_attempt(run: StoragePath, attempt: Mapping[str, Any]) -> None:
    """Put an attempt on record."""
    (run / ATTEMPTS).append_text(json.dumps(attempt) + "\n")


def source_digest(folder: Path) -> str:
    """Digest of a folder's Python files."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def commit(checkout: Path) -> str | None:
    """The git commit that a folder holds, `-dirty` where files of it have been changed; None if nobody says.

    Where the code has come without .git, an image has it in a file COMMIT beside the package (cluster/Dockerfile), and
    whoever uses `ray job submit` may say it by MULTAS_COMMIT.
    """
    if not (checkout / ".git").exists():
        built = checkout / "COMMIT"
        return (built.read_text().strip() if built.exists() else os.environ.get("MULTAS_COMMIT")) or None
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
