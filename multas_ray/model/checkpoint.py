"""Checkpoint folders: what is in them, and which one is the newest that is whole. Free of PyTorch.

A checkpoint folder `step_00000123/` holds
    model.safetensors  the network to use: the moving average's weights, student only
    state.pt           what resuming needs: raw weights, optimiser, moving average, position
    meta.json          step, classes, model configuration, metrics
    manifest.json      SHA-256 of the files above, written last
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from multas_ray.config import ModelConfig
from multas_ray.errors import UserError

MODEL, STATE, META, MANIFEST = "model.safetensors", "state.pt", "meta.json", "manifest.json"


class Meta(BaseModel):
    """`meta.json`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    step: int
    model: ModelConfig
    det_classes: list[str]
    seg_classes: list[str]
    size: int
    """Side of the evaluation input in pixels."""
    metrics: dict[str, float]
    """Of the evaluation at this step; empty without one."""


def write_manifest(folder: Path) -> None:
    """Write down what the other files are: the last act of writing a checkpoint."""
    digests = {name: _digest(folder / name) for name in (MODEL, STATE, META)}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1))


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if every file is as its manifest says."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    return None


def weights_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's network, as its manifest has it.

    Raises:
        UserError: there is no such manifest.
    """
    try:
        return json.loads((folder / MANIFEST).read_text())[MODEL]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / MANIFEST}: not readable ({error})") from None


def step_folder(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / "checkpoints" / f"step_{step:08d}"


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run that verifies; a broken newer one is named on standard output."""
    for folder in _newest_first(run):
        problem = verify(folder)
        if problem is None:
            return folder
        print(f"checkpoint {folder} is broken ({problem}): going back to the one before", flush=True)
    return None


def start_step(run: Path) -> int:
    """The step that a run goes on from: that of its newest checkpoint, else 0."""
    newest = newest_checkpoint(run)
    return 0 if newest is None else read_meta(newest).step


def prune(run: Path, written: Path) -> None:
    """Delete a run's checkpoints except the one just written and the best.

    Not left to Ray Train's `num_to_keep`: it deletes a folder that is reported again after a restart, and forgets one
    that was written but not registered before a crash.
    """
    kept = {written, find_checkpoint(str(run))}
    for folder in _newest_first(run):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def find_checkpoint(path: str) -> Path:
    """The checkpoint folder that `path` means: itself, or the best whole one of a run folder, else its newest.

    Raises:
        UserError: there is none.
    """
    folder = Path(path).expanduser()
    if (folder / META).exists():
        return folder
    candidates = [c for c in _newest_first(folder) if (c / META).exists()]
    candidates.sort(key=lambda c: read_meta(c).metrics.get("score", -1.0), reverse=True)
    for candidate in candidates:
        if verify(candidate) is None:
            return candidate
    raise UserError(f"{path}: no whole checkpoint here (a run folder or a checkpoint folder is needed)")


def read_meta(folder: Path) -> Meta:
    """Read and check `meta.json`.

    Raises:
        UserError: it is missing or not of a network that this version knows.
    """
    try:
        return Meta.model_validate_json((folder / META).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / META}: not a checkpoint's description ({str(error).splitlines()[0]})") from None


def _newest_first(run: Path) -> Iterator[Path]:
    return iter(sorted((run / "checkpoints").glob("step_*"), reverse=True))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
