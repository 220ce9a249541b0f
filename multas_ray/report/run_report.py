"""`report.html` of a training run, from what its folder holds."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from multas_ray.config import Config
from multas_ray.config_docs import sections
from multas_ray.documents import parse_yaml
from multas_ray.errors import UserError
from multas_ray.report.html import Page
from multas_ray.report.plots import class_bars, learning_curves
from multas_ray.report.tables import Rows, by_source, class_table, metric_table
from multas_ray.run_folder import (
    CONFIG,
    REPORT,
    SAMPLES,
    read_attempts,
    read_metrics,
    read_result,
    read_workers,
)
from multas_ray.storage import Location, StoragePath


def run_report(run: Location) -> StoragePath:
    """Write `<run>/report.html`; what the folder does not hold (yet) is left out.

    Reads config.yaml, metrics.jsonl, result.json, attempts.jsonl, workers.jsonl, and of samples/*.png those of the
    newest evaluation: the first number in a file's name is its step.

    Returns:
        The report's path.

    Raises:
        UserError: result.json does not hold a run's result.
    """
    run = StoragePath(run)
    lines = read_metrics(run)
    result = read_result(run) or {}
    columns = _metric_columns(result, lines)
    sources = by_source(next(iter(columns.values()), {}))
    config = _text(run / CONFIG)
    tables = {
        "Metrics [%]": metric_table(columns),
        "Metrics by class [%]": class_table(columns),
        "Metrics by data set [%]": metric_table(sources),
        "Metrics by data set and class [%]": class_table(sources),
        "Time of a training step": _time_shares(lines),
        "Slowest workers": _stragglers(lines, run),
        "Teachers": _teachers(lines),
        "What ran": _attempts(run),
        "Settings other than the defaults": _changed_settings(config),
    }
    figures = {"Learning curves": learning_curves({run.name: lines})} if lines else {}
    if tables["Metrics by class [%]"]:
        figures["By class"] = class_bars(columns)
    page = Page(
        title=f"Run {run.name}",
        intro="\n".join([_state(result, lines), *_troubles(lines)]),
        tables={heading: rows for heading, rows in tables.items() if rows},
        figures=figures,
        pictures={f"Samples: {file.name.removesuffix('.png')}": file.read_bytes() for file in _newest_samples(run)},
        texts={"Configuration, all of it": config} if config else {},
    )
    report = run / REPORT
    report.write_text(page.html())
    return report


def _metric_columns(result: Mapping[str, Any], lines: Rows) -> dict[str, Mapping[str, Any]]:
    """Heading -> metrics: the final evaluation's, or the newest's while the run lasts, and the best one's."""
    if result.get("final"):
        columns = {"final": result["final"]}
    else:
        columns = {"newest": next((line for line in reversed(lines) if "score" in line), {})}
    columns["best"] = result.get("best", {})
    return {heading: metrics for heading, metrics in columns.items() if metrics}


def _state(result: Mapping[str, Any], lines: Rows) -> str:
    if result:
        return f"{result['steps']} steps in {_duration(result['seconds'])}\nbest checkpoint: {result['checkpoint']}"
    return f"not finished; {lines[-1]['step']} steps so far" if lines else "not started"


def _troubles(lines: Rows) -> list[str]:
    """Sentences on steps that were skipped and images that were rejected."""
    newest = next((line for line in reversed(lines) if "bad_steps" in line), {})
    bad, rejected = newest.get("bad_steps", 0), newest.get("rejected_rows", 0)
    return [f"{bad} steps were not taken, their loss or gradient was not finite (bad_steps.jsonl)"] * (bad > 0) + [
        f"{rejected} images could not be used and were left out (rejected.jsonl)"
    ] * (rejected > 0)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _time_shares(lines: Rows) -> Rows:
    """Parts of a training step's seconds, averaged over the logged steps."""
    steps = [line for line in lines if line.get("time/step_s", 0) > 0]
    if not steps:
        return []
    total = sum(line["time/step_s"] for line in steps)
    names = {"waiting for data": "time/data_wait_s", "waiting for teachers": "time/teacher_wait_s"}
    waits = {part: sum(line.get(name, 0.0) for line in steps) for part, name in names.items()}
    parts = {**waits, "computing": total - sum(waits.values()), "step": total}
    return [
        {"part": part, "seconds a step": seconds / len(steps), "share": f"{seconds / total:.1%}"}
        for part, seconds in parts.items()
    ]


def _stragglers(lines: Rows, run: StoragePath) -> Rows:
    """Workers that were the slowest in some logged step, the slowest first.

    Their seconds are those of what a worker does without the others: waiting for data, and the forward pass.
    """
    names = {"time/slowest_rank", "time/slowest_rank_s", "time/median_rank_s"}
    timed = [line for line in lines if names <= line.keys() and line["time/median_rank_s"] > 0]
    nodes = {worker.rank: worker.node for worker in read_workers(run)}
    rows = []
    for rank in sorted({line["time/slowest_rank"] for line in timed}):
        slow = [line for line in timed if line["time/slowest_rank"] == rank]
        ratio = sum(line["time/slowest_rank_s"] / line["time/median_rank_s"] for line in slow) / len(slow)
        rows.append(
            {
                "worker": f"rank {rank} on {nodes.get(rank, '?')}",
                "slowest in": f"{len(slow) / len(timed):.0%} of the log lines",
                "seconds a step": sum(line["time/slowest_rank_s"] for line in slow) / len(slow),
                "times the median": ratio,
            }
        )
    return sorted(rows, key=lambda row: row["seconds a step"], reverse=True)


def _teachers(lines: Rows) -> Rows:
    """The teacher pool's figures as they were logged last, one row per teacher."""
    newest = next((line for line in reversed(lines) if any(name.startswith("teacher/") for name in line)), {})
    rows: dict[str, dict[str, Any]] = {}
    for name, value in newest.items():
        match = re.fullmatch(r"teacher/([^/]+)/(.+)", name)
        if match:
            rows.setdefault(match[1], {"teacher": match[1]})[match[2]] = value
    return list(rows.values())


def _attempts(run: StoragePath) -> Rows:
    """Starts of the run, each with its code, data and teachers by the beginnings of their digests."""
    return [
        {
            "started": attempt.started,
            "from step": attempt.from_step,
            "commit": _short(attempt.code.commit),
            "source": _short(attempt.code.digest),
            "precision": attempt.precision,
            **{f"data.{role}": _short(digest) for role, digest in attempt.data.items()},
            **{f"teachers.{task}": _short(digest) for task, digest in attempt.teachers.items()},
            **attempt.versions,
        }
        for attempt in read_attempts(run)
    ]


def _short(digest: str | None) -> str:
    """The first 12 characters of a commit or digest, and whether the commit had changes."""
    return "unknown" if digest is None else digest[:12] + "-dirty" * digest.endswith("-dirty")


def _changed_settings(config: str) -> Rows:
    """Settings that differ from their default or have none, one row each; none if the text is not YAML.

    Args:
        config: text of a run's config.yaml.
    """
    try:
        tree = parse_yaml(config, CONFIG)
    except UserError:
        return []
    parts = {path: (section, holder) for path, section, holder in sections("", Config)}
    rows = []
    for path, (section, holder) in parts.items():
        values = _section_at(tree, path)
        for name, field in section.model_fields.items():
            setting = f"{path}.{name}"
            is_section = any(f"{part}.".startswith(f"{setting}.") for part in parts)
            default = getattr(holder.default if holder else None, name, field.default)
            if not is_section and name in values and values[name] != default:
                shown = "" if field.is_required() else _yaml_value(default)
                rows.append({"setting": setting, "value": _yaml_value(values[name]), "default": shown})
    return rows


def _section_at(tree: Any, path: str) -> Mapping[str, Any]:
    """The mapping at a dotted path of a tree of mappings; empty if there is none."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def _yaml_value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _newest_samples(run: StoragePath) -> list[StoragePath]:
    names = [name for name in (run / SAMPLES).names() if name.endswith(".png")]
    newest = max((_step_of(name) for name in names), default=0)
    return [run / SAMPLES / name for name in names if _step_of(name) == newest]


def _step_of(name: str) -> int:
    number = re.search(r"\d+", name)
    return int(number.group()) if number else -1


def _text(file: StoragePath) -> str:
    return file.read_bytes().decode(errors="replace") if file.exists() else ""
