"""What a run writes while it goes on: `metrics.jsonl`, and Weights & Biases. Rank 0 only."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from multas_ray.config import Config

METRICS = "metrics.jsonl"
ERRORS = "errors.log"


class Tracker:
    """Appends to a run's metrics file and, unless disabled, to its W&B run.

    A run that goes on from step `start` keeps what it has written up to there and drops what came after: one curve.
    """

    def __init__(self, run: Path, config: Config, start: int) -> None:
        self.file = run / METRICS
        truncate_metrics(self.file, start)
        self.wandb = _start_wandb(run, config) if config.tracking.wandb != "disabled" else None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line of metrics."""
        with self.file.open("a") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")
        if self.wandb is not None:
            self.wandb.log({"step": step, **metrics}, step=step)

    def pictures(self, step: int, files: Sequence[Path]) -> None:
        """Show pictures of an evaluation."""
        if self.wandb is not None and files:
            import wandb

            self.wandb.log({"samples": [wandb.Image(str(file), caption=file.stem) for file in files]}, step=step)

    def table(self, name: str, metrics: Mapping[str, float]) -> None:
        """Keep metrics as the run's summary and as a table."""
        if self.wandb is not None:
            import wandb

            self.wandb.summary.update(dict(metrics))
            self.wandb.log(
                {name: wandb.Table(columns=["metric", "value"], data=[list(item) for item in metrics.items()])}
            )

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if kind is None else 1)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file; a last line that a kill cut short is left out."""
    lines: list[dict[str, Any]] = []
    if (run / METRICS).exists():
        for line in (run / METRICS).read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return lines


def truncate_metrics(file: Path, step: int) -> None:
    """Drop the lines after `step`, and any that is not whole."""
    kept = [line for line in read_metrics(file.parent) if line["step"] <= step]
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.replace(file)


def _start_wandb(run: Path, config: Config) -> Any:
    import wandb

    # The run's own folder keeps its id, so that every attempt goes on in the same W&B run.
    id_file = run / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid4().hex[:8])
    mode = config.tracking.wandb
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    os.environ.setdefault("WANDB_SILENT", "true")
    return wandb.init(
        project=config.tracking.project,
        group=config.tracking.group,
        name=run.name,
        id=id_file.read_text().strip(),
        resume="allow",
        mode=mode,
        dir=str(run),
        config=config.model_dump(mode="json"),
    )
