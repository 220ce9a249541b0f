"""Provenance of a run: for each of its starts, a line with its code, data and teachers."""

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
from multas_ray.teacher.ensemble import TaskTeacher

PACKAGE = Path(multas_ray.__file__).parent


def describe_attempt(
    start: int, splits: Mapping[str, Index], specs: Mapping[Task, TaskTeacher], precision: str
) -> dict[str, Any]:
    """Describe a start of a run.

    Args:
        start: step that it resumes from, 0 for a new run.
        splits: rows by role, "train" and "val".
        specs: teachers by task.
        precision: type that `train.precision` was resolved to.

    Returns:
        A line of attempts.jsonl, see `run_folder.Attempt`.
    """
    return {
        "started": f"{datetime.now():%F %T}",
        "from_step": start,
        "code": {"commit": commit(PACKAGE.parent), "digest": source_digest(PACKAGE)},
        "precision": precision,
        "versions": {name: version(name) for name in ("ray", "torch", "torchvision")},
        "data": {
            "/".join(filter(None, [role, origin.name])): origin.digest
            for role, index in splits.items()
            for origin in index.origins
        },
        "teachers": {task: spec.digest for task, spec in specs.items()},
    }


def record_attempt(run: StoragePath, attempt: Mapping[str, Any]) -> None:
    """Append an attempt to the run's attempts.jsonl."""
    (run / ATTEMPTS).append_text(json.dumps(attempt) + "\n")


def source_digest(folder: Path) -> str:
    """Compute the SHA-256 of a folder's Python files."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def commit(checkout: Path) -> str | None:
    """Find the git commit of a checkout, with `-dirty` where files of it have been changed.

    Code without .git has its commit in a file COMMIT beside the package (container images, see cluster/Dockerfile), or
    in the environment variable MULTAS_COMMIT (`ray job submit`).

    Returns:
        None if the commit is not known.
    """
    if not (checkout / ".git").exists():
        built = checkout / "COMMIT"
        return (built.read_text().strip() if built.exists() else os.environ.get("MULTAS_COMMIT")) or None
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
