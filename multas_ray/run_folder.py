"""Contents of a run folder: the names of its files and folders, and readers of the files.

A killed writer, a full disk or another program may have left anything there: lines that a run does not write are
skipped, and an error names a file that cannot be done without.

    config.yaml       configuration
    attempts.jsonl    a line for each start: code, versions, data, teachers
    workers.jsonl     a line for each worker: its node
    metrics.jsonl     curves
    bad_steps.jsonl   steps that were not taken, since their loss or gradient was not finite
    rejected.jsonl    images that could not be used
    errors.log        failures of workers, which Ray may have repaired
    progress.json     newest step, or the part of the run that is being started
    samples/          pictures of predictions, one file an evaluation
    checkpoints/      checkpoint folders, see multas_ray/checkpoint/folder.py
    result.json       final and best metrics, once the run is finished
    report.html       report
    wandb_id, wandb/  id and files of the run in Weights & Biases
"""

import re
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from multas_ray.documents import read_json, read_model
from multas_ray.errors import UserError, one_line
from multas_ray.storage import Location, StoragePath, read_lines

CONFIG, RESULT, REPORT = "config.yaml", "result.json", "report.html"
METRICS, ATTEMPTS, WORKERS = "metrics.jsonl", "attempts.jsonl", "workers.jsonl"
REJECTED, BAD_STEPS, ERRORS = "rejected.jsonl", "bad_steps.jsonl", "errors.log"
PROGRESS, SAMPLES, CHECKPOINTS = "progress.json", "samples", "checkpoints"
WANDB, WANDB_ID = "wandb", "wandb_id"

Line = TypeVar("Line", bound=BaseModel)
LARGEST = 1e300
"""Bound of the numbers that plots and tables can show: a little more is still finite. JSON's integers have no bound."""
Number = Annotated[int | float, Field(gt=-LARGEST, lt=LARGEST)]
Metrics = dict[str, Number]


def checkpoint_name(step: int) -> str:
    """Path of a step's checkpoint folder inside the run folder."""
    return f"{CHECKPOINTS}/step_{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """Step of a checkpoint folder by its name; None for any other name."""
    match = re.fullmatch(r"step_(\d+)", name)
    return int(match[1]) if match else None


def sample_name(step: int) -> str:
    """Path of the picture of a step's evaluation inside the run folder."""
    return f"{SAMPLES}/{step:08d}.png"


def is_sample(name: str) -> bool:
    """Whether a file of the samples folder is the picture of an evaluation, by its name."""
    return re.fullmatch(r"\d{8}\.png", name) is not None


class Result(BaseModel):
    """`result.json` of a finished run."""

    final: Metrics
    """Metrics of the last evaluation."""
    best: Metrics
    """Metrics of the evaluation with the highest score, and its step."""
    steps: int = Field(ge=0)
    seconds: Number = Field(ge=0)
    checkpoint: str
    """Path of the best checkpoint inside the run folder."""


class Code(BaseModel):
    """Version of the code that ran."""

    commit: str | None
    """Git commit; None if it is not known."""
    digest: str
    """SHA-256 of the package's source."""


class Attempt(BaseModel):
    """Line of `attempts.jsonl`, one for each start of the run; see `describe_attempt`."""

    started: str
    from_step: int
    code: Code
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the attempt; None in runs older than this field."""
    versions: dict[str, str]
    data: dict[str, str]
    teachers: dict[str, str]


class Worker(BaseModel):
    """Line of `workers.jsonl`, one for each worker."""

    rank: int
    node: str


def read_result(run: Location) -> dict[str, Any] | None:
    """Read a run's result.json, see `Result`; None if there is none.

    Raises:
        UserError: the file is not a result.
    """
    file = StoragePath(run) / RESULT
    try:
        return read_model(file, Result).model_dump() if file.exists() else None
    except UserError as error:
        raise UserError(f"{error}; delete it, and the run is concluded anew") from None


def read_metrics(run: Location) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl: lines with a step, and numbers by name."""
    lines = [
        {name: value for name, value in line.items() if type(value) in (int, float) and abs(value) < LARGEST}
        for line in read_lines(StoragePath(run) / METRICS)
    ]
    return [line for line in lines if isinstance(line.get("step"), int)]


def read_attempts(run: Location) -> list[Attempt]:
    """Read all starts of a run."""
    return _lines_of(StoragePath(run) / ATTEMPTS, Attempt)


def read_workers(run: Location) -> list[Worker]:
    """Read where a run's workers are, or were at its last start."""
    return _lines_of(StoragePath(run) / WORKERS, Worker)


def read_progress(run: StoragePath, since: float) -> dict[str, Any]:
    """Read a run's progress.json: `step`, or `starting`.

    Args:
        run: run folder.
        since: time in seconds since 1970; an older file does not count.

    Returns:
        Nothing if there is no such file.
    """
    file = run / PROGRESS
    content: Any = {}
    with suppress(OSError, UserError):
        if file.exists() and file.modified() >= since:
            content = read_json(file)
    kinds = {"step": int, "starting": str}
    valid = isinstance(content, dict) and all(isinstance(value, kinds.get(name, ())) for name, value in content.items())
    return content if valid else {}


def newest_error(run: StoragePath) -> str:
    """Read the headline of the newest entry of a run's errors.log; empty if the run has logged metrics since."""
    errors, metrics = run / ERRORS, run / METRICS
    if not errors.exists() or (metrics.exists() and metrics.modified() > errors.modified()):
        return ""
    lines = errors.read_bytes().decode(errors="replace").splitlines()
    headlines = [line for line in lines if line[:4].isdigit()]
    return one_line(headlines[-1][:160]) if headlines else ""


def _lines_of(file: StoragePath, model: type[Line]) -> list[Line]:
    records = []
    for line in read_lines(file):
        with suppress(ValidationError):
            records.append(model.model_validate(line))
    return records
