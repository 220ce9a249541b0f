"""Metrics, pictures and problems of a run, written while it trains: to its folder and to Weights & Biases.

Rank 0 only.
"""

import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from multas_ray.config import Config, TrackingConfig
from multas_ray.run_folder import (
    BAD_STEPS,
    ERRORS,
    METRICS,
    PROGRESS,
    REJECTED,
    REPORT,
    SAMPLES,
    WANDB,
    WANDB_ID,
    WORKERS,
    is_sample,
    sample_name,
)
from multas_ray.storage import Location, StoragePath, read_lines

if TYPE_CHECKING:
    from multas_ray.report.overlays import Samples

REWRITE_S = 15.0
"""Seconds between two writes of a growing file where storage cannot append."""


class Tracker:
    """Tracker of every rank but 0: it writes nothing."""

    def __init__(self) -> None:
        """Start with no rejected rows."""
        self.rejected: dict[str, Mapping[str, Any]] = {}
        """Rows that cannot be used, by image id."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line of metrics."""

    def workers(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Write the place of each worker, by rank."""

    def bad_step(self, step: int, images: Iterable[str]) -> None:
        """Write that a step was skipped, and the images that may be the cause."""

    def reject(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Write rows that cannot be used, each image once."""

    def samples(self, step: int, draw: "Callable[[], Samples]") -> None:
        """Draw the pictures of an evaluation and write them: as one PNG, and in W&B as a table with a row an image."""

    def table(self, name: str, metrics: Mapping[str, float]) -> None:
        """Write metrics as the W&B run's summary and as a table."""

    def flush(self) -> None:
        """Write all lines of metrics that wait."""

    def __enter__(self) -> "Tracker":
        """Return the tracker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close nothing."""


class RunTracker(Tracker):
    """Tracker of rank 0: it appends to a run's metrics file and, unless disabled, to its W&B run.

    A run that resumes from step `start` drops the lines after it, so that there is one curve.
    """

    def __init__(self, run: StoragePath, config: Config, start: int, attempt: Mapping[str, Any]) -> None:
        """Open the log.

        Args:
            run: run folder.
            config: configuration of the run.
            start: step that the run resumes from, 0 for a new run.
            attempt: description of this start, see `describe_attempt`.
        """
        self.run = run
        self.metrics = _Lines(run / METRICS, start)
        self.bad_steps = _Lines(run / BAD_STEPS, start)
        self.rejected = {line["image_id"]: line for line in read_lines(run / REJECTED) if _named(line)}
        self.wandb = start_wandb(run, config.tracking, config.model_dump(mode="json") | {"ran": dict(attempt)})

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of a step."""
        self.metrics.add({"step": step, **metrics})
        if self.wandb is not None:
            self.wandb.log({"step": step, **metrics}, step=step)

    def workers(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Write the place of each worker, by rank, to workers.jsonl."""
        lines = [json.dumps({"rank": rank, **node}) for rank, node in enumerate(nodes)]
        (self.run / WORKERS).write_text("\n".join(lines) + "\n")

    def bad_step(self, step: int, images: Iterable[str]) -> None:
        """Log a step that was skipped, and the images that may be the cause."""
        self.bad_steps.add({"step": step, "images": sorted(images)})
        self.bad_steps.flush()

    def reject(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Log rows that cannot be used, each image once."""
        new = {row["image_id"]: dict(row) for row in rows if row["image_id"] not in self.rejected}
        if not new:
            return
        self.rejected |= new
        (self.run / REJECTED).append_text("".join(json.dumps(row) + "\n" for row in new.values()))

    def samples(self, step: int, draw: "Callable[[], Samples]") -> None:
        """Draw the pictures of an evaluation, and write them to the run folder and to W&B."""
        samples = draw()
        picture = samples.picture()
        if picture is None:
            return
        (self.run / sample_name(step)).write_bytes(picture)
        if self.wandb is not None:
            import wandb

            from multas_ray.report.overlays import COLUMNS
            from multas_ray.report.pictures import with_legend

            rows = [
                [name, *(wandb.Image(with_legend(cell, samples.palette).permute(1, 2, 0).numpy()) for cell in row)]
                for name, row in zip(samples.image_ids, samples.rows, strict=True)
            ]
            self.wandb.log({"samples": wandb.Table(columns=["image", *COLUMNS], data=rows)}, step=step)

    def table(self, name: str, metrics: Mapping[str, float]) -> None:
        """Log metrics to W&B as the run's summary and as a table."""
        if self.wandb is not None:
            import wandb

            self.wandb.summary.update(dict(metrics))
            self.wandb.log(
                {name: wandb.Table(columns=["metric", "value"], data=[list(item) for item in metrics.items()])}
            )

    def flush(self) -> None:
        """Write all lines of metrics that wait."""
        self.metrics.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write all lines, and finish the W&B run."""
        self.metrics.flush()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if kind is None else 1)


def _named(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("image_id"), str)


class _Lines:
    """Growing file of JSON lines, each with its step."""

    def __init__(self, file: StoragePath, start: int) -> None:
        """Drop the lines after step `start`, and those that are broken."""
        self.file = file
        lines = [line for line in read_lines(file) if isinstance(line.get("step"), int) and line["step"] <= start]
        self.text = "".join(json.dumps(line) + "\n" for line in lines)
        if lines or file.exists():
            file.write_text(self.text)
        self.written, self.at = len(self.text), monotonic()

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line: at once or, where storage cannot append, within `REWRITE_S`."""
        text = json.dumps(line) + "\n"
        if self.file.local:
            self.file.append_text(text)
            return
        self.text += text
        if monotonic() - self.at > REWRITE_S:
            self.flush()

    def flush(self) -> None:
        """Write all lines to the file."""
        if len(self.text) > self.written:
            self.file.write_text(self.text)
            self.written, self.at = len(self.text), monotonic()


def discard(run: StoragePath) -> None:
    """Delete the files of a run that left no checkpoint: curve, pictures, report, the W&B run's id.

    The run's history (attempts.jsonl, errors.log) and all other files in its folder stay.
    """
    for name in (METRICS, BAD_STEPS, REJECTED, WORKERS, WANDB_ID, REPORT):
        (run / name).delete()
    for name in (run / SAMPLES).names():
        if is_sample(name):
            (run / SAMPLES / name).delete()


class Progress:
    """Writer of progress.json: `{"step": 12}`, or `{"starting": "network"}` before the first step.

    Metrics are logged only every `train.log_every_steps`.
    """

    def __init__(self, run: StoragePath, writes: bool = True) -> None:
        """Open the file.

        Args:
            run: run folder.
            writes: whether this process writes; false on every rank but 0.
        """
        self.writes = writes
        self.file = run / PROGRESS
        self.every = 1.0 if run.local else REWRITE_S
        self.written = 0.0

    def starting(self, what: str) -> None:
        """Write the name of the part that is being started."""
        if self.writes:
            self._write({"starting": what})

    def step(self, step: int, first: bool = False) -> None:
        """Write the number of a step that has been taken, unless one was just written; the first one in any case."""
        if self.writes and (first or monotonic() - self.written >= self.every):
            self._write({"step": step})

    def _write(self, content: Mapping[str, Any]) -> None:
        # Best effort: a full disk is reported by the metrics and checkpoints.
        with contextlib.suppress(OSError):
            self.file.write_text(json.dumps(content))
        self.written = monotonic()


def log_error(run: Location, headline: str, details: str = "") -> None:
    """Log an error to the run's errors.log: Ray may repair it silently."""
    (StoragePath(run) / ERRORS).append_text(f"{datetime.now():%F %T} {headline}\n{details}\n")


def start_wandb(run: StoragePath, tracking: TrackingConfig, tree: Mapping[str, Any], kind: str | None = None) -> Any:
    """Start the W&B run of a run folder, under the folder's name.

    Args:
        run: run folder.
        tracking: settings of W&B.
        tree: configuration that W&B shows.
        kind: W&B's job type.

    Returns:
        None if W&B is disabled.
    """
    mode = tracking.wandb
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline" if run.local else "disabled"
    if mode == "disabled":
        return None
    import wandb

    # The id is kept in the run folder, so that every attempt resumes the same W&B run.
    os.environ.setdefault("WANDB_SILENT", "true")
    if run.local:
        # Where tables wait for `wandb sync`; by default the home folder of a node that may not last.
        os.environ.setdefault("WANDB_DATA_DIR", str(run / WANDB))
    return wandb.init(
        project=tracking.project,
        group=tracking.group,
        job_type=kind,
        name=run.name,
        id=wandb_id(run),
        resume="allow",
        mode=mode,
        # W&B needs a local folder; an online run has no further use for it.
        dir=str(run) if run.local else tempfile.mkdtemp(prefix="wandb"),
        config=dict(tree),
    )


def wandb_id(run: StoragePath) -> str:
    """Return the run's id in W&B, which its folder keeps; make one if there is none."""
    file = run / WANDB_ID
    content = file.read_bytes().strip() if file.exists() else b""
    if re.fullmatch(rb"[\w-]{1,64}", content):
        return content.decode()
    file.write_text(uuid4().hex[:8])
    return file.read_text()


def wandb_image(png: bytes, caption: str) -> Any:
    """Convert a PNG to an image of W&B."""
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(png)), caption=caption)
