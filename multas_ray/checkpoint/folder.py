"""Checkpoint folders: their files, and the newest whole one of a run. Free of PyTorch.

A checkpoint folder `step_00000123/` holds
    model.safetensors  the network to use: the moving average's weights, student only
    state.pt           what resuming needs: raw weights, optimiser, moving average, position
    meta.json          step, classes, model and evaluation configuration, metrics
    manifest.json      SHA-256 of the files above, written last
An export is a checkpoint folder too, without state.pt.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, BinaryIO

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, RootModel

from multas_ray.config import EvaluateConfig, ModelConfig, Task
from multas_ray.documents import read_model
from multas_ray.errors import UserError
from multas_ray.run_folder import CHECKPOINTS, checkpoint_name, checkpoint_step
from multas_ray.storage import Location, StoragePath

MODEL, STATE, META, MANIFEST = "model.safetensors", "state.pt", "meta.json", "manifest.json"


class Meta(BaseModel):
    """`meta.json`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    step: int = Field(ge=0)
    model: ModelConfig
    det_classes: list[str]
    seg_classes: list[str]
    size: int = Field(ge=32, le=2**15)
    """Side of the evaluation input in pixels."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Settings by which boxes are made of the network's outputs and scored."""
    metrics: dict[str, float]
    """Metrics of the evaluation at this step; empty without one."""
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Wall time of the run up to this step, start-up and earlier attempts included."""

    @property
    def classes(self) -> dict[Task, list[str]]:
        """Names of each task's classes."""
        return {"det": self.det_classes, "seg": self.seg_classes}


class _Manifest(RootModel[dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], str]]):
    """`manifest.json`: SHA-256 of each file of the folder, by its name."""


def write_files(folder: StoragePath, files: Mapping[str, Callable[[BinaryIO], object]]) -> None:
    """Write a checkpoint's files, and last of all their manifest.

    Args:
        folder: checkpoint folder; an existing one is replaced.
        files: functions that write a file into a stream, by the file's name.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the folder is deleted then.
    """
    # An existing folder is broken: a run resumes from whole checkpoints.
    folder.delete()
    digests = {}
    try:
        for name, write in files.items():
            with (folder / name).create() as stream:
                hashing = _Hashing(stream)
                try:
                    write(hashing)  # type: ignore[arg-type]
                except RuntimeError as error:
                    # PyTorch's writer raises this in place of the stream's error.
                    raise hashing.error or error from None
            digests[name] = hashing.digest.hexdigest()
        (folder / MANIFEST).write_text(json.dumps(digests, indent=1))
    except Exception:
        folder.delete()
        raise


class _Hashing:
    """Output stream that computes the SHA-256 of its bytes, and remembers its error."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        self.digest.update(data)
        try:
            return int(self.stream.write(data))
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.stream.flush()


def read_files(folder: StoragePath, *names: str) -> list[bytes]:
    """Read files of a checkpoint, and verify their digests.

    Raises:
        UserError: a file is missing, or is not what was written.
    """
    digests = _manifest(folder)
    contents = []
    for name in names:
        try:
            contents.append((folder / name).read_bytes())
        except OSError as error:
            raise UserError(f"{folder / name}: not readable ({error})") from None
        if hashlib.sha256(contents[-1]).hexdigest() != digests.get(name):
            raise UserError(f"{folder / name}: not what was written; the checkpoint is broken")
    return contents


def verify(folder: StoragePath) -> str | None:
    """Verify the digests of a checkpoint's files.

    Returns:
        The problem in words; None if there is none.
    """
    try:
        for name, digest in _manifest(folder).items():
            with (folder / name).open() as stream:
                if _digest(stream) != digest:
                    return f"{name} is not what was written"
    except (OSError, UserError) as error:
        return str(error)
    return None


def weights_digest(folder: StoragePath) -> str:
    """Read the SHA-256 of a checkpoint's network from its manifest.

    Raises:
        UserError: there is no usable manifest.
    """
    return _manifest(folder)[MODEL]


def _manifest(folder: StoragePath) -> dict[str, str]:
    digests = read_model(folder / MANIFEST, _Manifest).root
    if not {MODEL, META} <= digests.keys():
        raise UserError(f"{folder / MANIFEST}: lacks {MODEL} or {META}")
    return digests


def _digest(stream: io.IOBase) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def step_folder(run: Location, step: int) -> StoragePath:
    """Return the folder of a run's checkpoint at a step."""
    return StoragePath(run) / checkpoint_name(step)


def newest_checkpoint(run: Location) -> tuple[StoragePath | None, list[str]]:
    """Find a run's newest whole checkpoint.

    Returns:
        Its folder, None if there is none, and a line for the log on each newer checkpoint that is broken.
    """
    broken: list[str] = []
    for folder in _newest_first(run):
        problem = verify(folder)
        if problem is None:
            return folder, broken
        broken.append(f"checkpoint {folder} is broken ({problem}): going back to the one before")
    return None, broken


def newest_written(run: Location) -> int:
    """Return the step of a run's newest completely written checkpoint, 0 without one. Its files are not verified."""
    complete = (checkpoint_step(folder.name) for folder in _newest_first(run) if (folder / MANIFEST).exists())
    return next(complete, None) or 0


def prune(run: Location, keep: int) -> None:
    """Delete a run's checkpoints except the newest `keep` and the best.

    Replaces Ray Train's `num_to_keep`, which deletes a folder that is reported again after a restart, and forgets one
    that was written but not registered before a crash.
    """
    folders = list(_newest_first(run))
    best = find_checkpoint(run)
    for folder in folders[keep:]:
        if folder != best:
            folder.delete()


def find_checkpoint(path: Location) -> StoragePath:
    """Find the checkpoint folder that a path means.

    Args:
        path: a checkpoint folder, or a run folder: its best whole checkpoint is taken, or the newest if none has been
            evaluated.

    Raises:
        UserError: there is no whole checkpoint.
    """
    folder = StoragePath(path)
    if (folder / META).exists():
        return folder
    candidates = [c for c in _newest_first(folder) if (c / META).exists()]
    for candidate in sorted(candidates, key=_score, reverse=True):
        if verify(candidate) is None:
            return candidate
    raise UserError(f"{path}: no whole checkpoint here (a run folder or a checkpoint folder is needed)")


def _score(checkpoint: StoragePath) -> float:
    """Score of a checkpoint's evaluation; -1, less than any score, without one or where meta.json is unusable."""
    try:
        return read_meta(checkpoint).metrics.get("score", -1.0)
    except UserError:
        return -1.0


def read_meta(folder: StoragePath) -> Meta:
    """Read and check `meta.json`.

    Raises:
        UserError: the file is missing, or describes a network that this version does not know.
    """
    return read_model(folder / META, Meta)


def _newest_first(run: Location) -> Iterator[StoragePath]:
    checkpoints = StoragePath(run) / CHECKPOINTS
    return (checkpoints / name for name in reversed(checkpoints.names()) if checkpoint_step(name) is not None)
