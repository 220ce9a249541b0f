"""What a run's folder tells. A killed writer, a full disk or another program may have left anything there: lines that
are not what a run writes are passed over, and where the rest depends on a file, it is named."""

from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from multas_ray.documents import read_json, read_model
from multas_ray.errors import UserError, one_line
from multas_ray.storage import Location, StoragePath, read_lines

CONFIG, RESULT, REPORT = "config.yaml", "result.json", "report.html"
METRICS, ATTEMPTS, WORKERS = "metrics.jsonl", "attempts.jsonl", "workers.jsonl"
REJECTED, BAD_STEPS, ERRORS = "rejected.jsonl", "bad_steps.jsonl", "errors.log"
PROGRESS, SAMPLES, WANDB_ID = "progress.json", "samples", "wandb_id"

Line = TypeVar("Line", bound=BaseModel)
LARGEST = 1e300
Number = Annotated[int | float, Field(gt=-LARGEST, lt=LARGEST)]
"""What plots and tables can show: also a little more than it is still finite. JSON's integers have no end."""
Metrics = dict[str, Number]


class Result(BaseModel):
    """`result.json` of a finished run."""

    final: Metrics
    """Of the last evaluation."""
    best: Metrics
    """Of the one with the highest score, with its step."""
    steps: int = Field(ge=0)
    seconds: Number = Field(ge=0)
    checkpoint: str
    """The best one's folder, from the run's."""


class Code(BaseModel):
    """What ran."""

    commit: str | None
    digest: str


class Attempt(BaseModel):
    """A line of `attempts.jsonl`, one a start; see `describe_attempt`."""

    started: str
    from_step: int
    code: Code
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    """Of runs before it was written down: None."""
    versions: dict[str, str]
    data: dict[str, str]
    teachers: dict[str, str]


class Worker(BaseModel):
    """A line of `workers.jsonl`."""

    rank: int
    node: str


def read_result(run: Location) -> dict[str, Any] | None:
    """What a run's result.json holds, see `Result`; None if it has none.

    Raises:
        UserError: it is none.
    """
    file = StoragePath(run) / RESULT
    try:
        return read_model(file, Result).model_dump() if file.exists() else None
    except UserError as error:
        raise UserError(f"{error}; delete it, and the run is concluded anew") from None


def read_metrics(run: Location) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl: each with a step, and numbers by name."""
    lines = [
        {name: value for name, value in line.items() if type(value) in (int, float) and abs(value) < LARGEST}
        for line in read_lines(StoragePath(run) / METRICS)
    ]
    return [line for line in lines if isinstance(line.get("step"), int)]


def read_attempts(run: Location) -> list[Attempt]:
    """Every start of a run."""
    return _lines_of(StoragePath(run) / ATTEMPTS, Attempt)


def read_workers(run: Location) -> list[Worker]:
    """Where a run's workers are, or have been."""
    return _lines_of(StoragePath(run) / WORKERS, Worker)


def read_progress(run: StoragePath, since: float) -> dict[str, Any]:
    """What a run's progress.json holds, `step` or `starting`, if it has been written since then (seconds since 1970);
    else nothing."""
    file = run / PROGRESS
    found: Any = {}
    with suppress(OSError, UserError):
        if file.exists() and file.modified() >= since:
            found = read_json(file)
    kinds = {"step": int, "starting": str}
    if not isinstance(found, dict) or not all(isinstance(value, kinds.get(name, ())) for name, value in found.items()):
        return {}
    return found


def newest_error(run: StoragePath) -> str:
    """The headline of the newest entry of a run's errors.log, unless the run has logged metrics since."""
    errors, metrics = run / ERRORS, run / METRICS
    if not errors.exists() or (metrics.exists() and metrics.modified() > errors.modified()):
        return ""
    lines = errors.read_bytes().decode(errors="replace").splitlines()
    headlines = [line for line in lines if line[:4].isdigit()]
    return one_line(headlines[-1][:160]) if headlines else ""


def _lines_of(file: StoragePath, model: type[Line]) -> list[Line]:
    found = []
    for line in read_lines(file):
        with suppress(ValidationError):
            found.append(model.model_validate(line))
    return found
