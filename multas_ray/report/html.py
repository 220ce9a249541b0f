"""A report as one HTML file that opens without a network."""

import base64
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from typing import Any

import yaml

from multas_ray.config import Config
from multas_ray.config_docs import sections
from multas_ray.documents import parse_yaml
from multas_ray.errors import UserError
from multas_ray.report.plots import class_bars, learning_curves
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

Records = Sequence[Mapping[str, Any]]
"""Rows of a table; the columns are their keys, in order of first occurrence."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters other than tab and line end."""
STYLE = """
:root { color-scheme: light; }
body { margin: 0; color: #1c2330; background: #f6f7f9; font: 16px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.intro { color: #55607a; margin: 0; white-space: pre-line; }
.wide { overflow-x: auto; background: #fff; border: 1px solid #e1e5ec; border-radius: 8px; padding: .8rem; }
.wide img { display: block; }
.wide img.figure { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem .2rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: #55607a; font-weight: 600; border-bottom: 2px solid #e1e5ec; }
tr + tr td { border-top: 1px solid #eef0f4; }
pre { margin: 0; font-size: .85rem; }
"""


def report_page(
    title: str,
    intro: str = "",
    tables: Mapping[str, Records] | None = None,
    figures: Mapping[str, bytes] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    texts: Mapping[str, str] | None = None,
) -> str:
    """A self-contained page: no script, no link, images inline, all text escaped.

    Args:
        title, intro: head of the page; line breaks in the intro are kept.
        tables: heading -> rows.
        figures: heading -> PNG, shrunk to the page's width.
        pictures: heading -> PNG in its own size; a wide one scrolls.
        texts: heading -> preformatted text, such as a configuration.
    """
    sections = [_section(name, _table(rows)) for name, rows in (tables or {}).items()]
    sections += [_section(name, _image(png, name, "figure")) for name, png in (figures or {}).items()]
    sections += [_section(name, _image(png, name, "picture")) for name, png in (pictures or {}).items()]
    sections += [_section(name, f"<pre>{escape(text)}</pre>") for name, text in (texts or {}).items()]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><main><h1>{escape(title)}</h1><p class="intro">{escape(intro)}</p>\n'
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )
    # HTML has no way to write them; a terminal that shows the file would obey them.
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), page)


def run_report(run: Location) -> StoragePath:
    """Build `<run>/report.html` from what the run left; what is not there (yet) is left out.

    Reads config.yaml, metrics.jsonl, result.json, and of samples/*.png those of the newest evaluation: the first
    number in a file's name is its step.

    Returns:
        The report's path.
    """
    run = StoragePath(run)
    lines = read_metrics(run)
    result = read_result(run) or {}
    final, best = result.get("final", {}), result.get("best", {})
    # A run that is not over yet shows its newest evaluation.
    columns = {"final": final} if final else {"newest": _newest_evaluation(lines)}
    columns = {name: metrics for name, metrics in (columns | {"best": best}).items() if metrics}
    tables = {
        "Metrics [%]": metric_table(columns),
        "Metrics by class [%]": class_table(columns),
        "Time of a training step": _time_shares(lines),
        "Slowest workers": _stragglers(lines, run),
        "Teachers": _teachers(lines),
        "What ran": _attempts(run),
    }
    figures = {"Learning curves": learning_curves({run.name: lines})} if lines else {}
    if tables["Metrics by class [%]"]:
        figures["By class"] = class_bars(columns)
    config = _text(run / CONFIG)
    with suppress(UserError):
        tables["Settings other than the defaults"] = _settings(parse_yaml(config, CONFIG))
    report = run / REPORT
    page = report_page(
        title=f"Run {run.name}",
        intro=_intro(result, lines),
        tables={heading: rows for heading, rows in tables.items() if rows},
        figures=figures,
        pictures={f"Samples: {file.name.removesuffix('.png')}": file.read_bytes() for file in _newest_samples(run)},
        texts={"Configuration, all of it": config} if config else {},
    )
    report.write_text(page)
    return report


def _intro(result: Mapping[str, Any], lines: Records) -> str:
    return "\n".join([_state(result, lines), *_troubles(lines)])


def _troubles(lines: Records) -> list[str]:
    """What went wrong on the way, in words."""
    logged = next((line for line in reversed(lines) if "bad_steps" in line), {})
    bad, rejected = logged.get("bad_steps", 0), logged.get("rejected_rows", 0)
    return [f"{bad} steps were not taken, their loss or gradient was not finite (bad_steps.jsonl)"] * (bad > 0) + [
        f"{rejected} images could not be used and were left out (rejected.jsonl)"
    ] * (rejected > 0)


def _state(result: Mapping[str, Any], lines: Records) -> str:
    if result:
        return f"{result['steps']} steps in {_duration(result['seconds'])}\nbest checkpoint: {result['checkpoint']}"
    return f"not finished; {lines[-1]['step']} steps so far" if lines else "not started"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _newest_evaluation(lines: Records) -> Mapping[str, Any]:
    return next((line for line in reversed(lines) if "score" in line), {})


def metric_table(columns: Mapping[str, Mapping[str, Any]]) -> Records:
    """A row a metric that is not of one class, a column a set of metrics."""
    keys = dict.fromkeys(key for metrics in columns.values() for key in metrics)
    shown = [key for key in keys if key.startswith(("det/", "seg/")) and key.count("/") == 1]
    shown += [key for key in ("score", "step") if key in keys]
    return [{"metric": key} | {name: metrics.get(key, "") for name, metrics in columns.items()} for key in shown]


def class_table(columns: Mapping[str, Mapping[str, Any]]) -> Records:
    """A row a class, a column a task and set of metrics."""
    rows: dict[str, dict[str, Any]] = {}
    for task in ("det/AP", "seg/IoU"):
        for name, metrics in columns.items():
            for key, value in metrics.items():
                if key.startswith(f"{task}/"):
                    label = key.removeprefix(f"{task}/")
                    rows.setdefault(label, {"class": label})[f"{task} {name}"] = value
    return list(rows.values())


def _time_shares(lines: Records) -> Records:
    """Where a step's seconds go, averaged over the run's logging steps."""
    steps = [line for line in lines if line.get("time/step_s", 0) > 0]
    if not steps:
        return []
    total = sum(line["time/step_s"] for line in steps)
    parts = {"waiting for data": "time/data_wait_s", "waiting for teachers": "time/teacher_wait_s"}
    waits = {name: sum(line.get(key, 0.0) for line in steps) for name, key in parts.items()}
    rows = {**waits, "computing": total - sum(waits.values()), "step": total}
    return [
        {"part": name, "seconds a step": seconds / len(steps), "share": f"{seconds / total:.1%}"}
        for name, seconds in rows.items()
    ]


def _stragglers(lines: Records, run: StoragePath) -> Records:
    """The workers that the others waited for: how often, and how much longer than the median they took for what they
    do without the others (waiting for data, forward pass)."""
    keys = {"time/slowest_rank", "time/slowest_rank_s", "time/median_rank_s"}
    timed = [line for line in lines if keys <= line.keys() and line["time/median_rank_s"] > 0]
    nodes = {worker.rank: worker.node for worker in read_workers(run)}
    rows = []
    for rank in sorted({line["time/slowest_rank"] for line in timed}):
        own = [line for line in timed if line["time/slowest_rank"] == rank]
        ratio = sum(line["time/slowest_rank_s"] / line["time/median_rank_s"] for line in own) / len(own)
        rows.append(
            {
                "worker": f"rank {rank} on {nodes.get(rank, '?')}",
                "slowest in": f"{len(own) / len(timed):.0%} of the log lines",
                "seconds a step": sum(line["time/slowest_rank_s"] for line in own) / len(own),
                "times the median": ratio,
            }
        )
    return sorted(rows, key=lambda row: row["seconds a step"], reverse=True)


def _teachers(lines: Records) -> Records:
    """The pool's figures, a row a teacher, as they were logged last."""
    newest = next((line for line in reversed(lines) if any(key.startswith("teacher/") for key in line)), {})
    rows: dict[str, dict[str, Any]] = {}
    for key, value in newest.items():
        match = re.fullmatch(r"teacher/([^/]+)/(.+)", key)
        if match:
            rows.setdefault(match[1], {"teacher": match[1]})[match[2]] = value
    return list(rows.values())


def _attempts(run: StoragePath) -> Records:
    """Every start of the run: which code, data and teachers, by the beginnings of their digests."""
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


def _settings(config: Any) -> Records:
    """Of what a run's config.yaml holds, a row a setting that differs from its default, or has none."""
    parts = {path: (section, holder) for path, section, holder in sections("", Config)}
    rows = []
    for path, (section, holder) in parts.items():
        own = _at(config, path)
        for name, field in section.model_fields.items():
            default = getattr(holder.default if holder else None, name, field.default)
            if (
                name in own
                and own[name] != default
                and not any(f"{part}.".startswith(f"{path}.{name}.") for part in parts)
            ):
                shown = "" if field.is_required() else _value(default)
                rows.append({"setting": f"{path}.{name}", "value": _value(own[name]), "default": shown})
    return rows


def _at(tree: Any, path: str) -> Mapping[str, Any]:
    """A part of a tree of mappings by its dotted path, empty if it is not there."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def _value(value: Any) -> str:
    """A setting as YAML has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _short(digest: str | None) -> str:
    """Of a commit or digest, as much as people compare."""
    return "unknown" if digest is None else digest[:12] + "-dirty" * digest.endswith("-dirty")


def _newest_samples(run: StoragePath) -> list[StoragePath]:
    names = [name for name in (run / SAMPLES).names() if name.endswith(".png")]
    newest = max((_step_of(name) for name in names), default=0)
    return [run / SAMPLES / name for name in names if _step_of(name) == newest]


def _step_of(name: str) -> int:
    number = re.search(r"\d+", name)
    return int(number.group()) if number else -1


def _text(file: StoragePath) -> str:
    return file.read_bytes().decode(errors="replace") if file.exists() else ""


def _section(heading: str, body: str) -> str:
    return f'<section><h2>{escape(heading)}</h2><div class="wide">{body}</div></section>'


def _image(png: bytes, alt: str, kind: str) -> str:
    return f'<img class="{kind}" alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(rows: Records) -> str:
    columns = columns_of(rows)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell(row.get(column, '')))}</td>" for column in columns) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def columns_of(rows: Records) -> list[str]:
    """A table's columns."""
    return list(dict.fromkeys(key for row in rows for key in row))


def cell(value: Any) -> str:
    """A table's value as text."""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"
    return "" if value is None else str(value)
