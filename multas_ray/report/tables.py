"""Tables as rows of values by column: their text, and the tables of a network's metrics."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from multas_ray.config import METRIC_GROUPS, TASKS
from multas_ray.evaluate.scores import CLASS_METRIC, TASK_METRIC

if TYPE_CHECKING:
    from multas_ray.teacher.check import Checked

Rows = Sequence[Mapping[str, Any]]
"""Rows of a table: column -> value. The columns are the rows' keys in order of first occurrence."""


def table_text(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Columns of a table, and the text of each row's cells; empty where a row has no value."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return columns, [[_cell(row.get(column)) for column in columns] for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"
    return "" if value is None else str(value)


def metric_table(columns: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Metrics over all classes, in percent: one row per metric, then `score` and `step`.

    Args:
        columns: heading -> metrics by name.
    """
    names = dict.fromkeys(name for metrics in columns.values() for name in metrics)
    shown = [name for name in names if name.startswith(("det/", "seg/")) and name.count("/") == 1]
    shown += [name for name in ("score", "step") if name in names]
    return [
        {"metric": name} | {heading: metrics.get(name, "") for heading, metrics in columns.items()} for name in shown
    ]


def class_table(columns: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Metrics by class, in percent: one row per class, one column per task and heading.

    Args:
        columns: heading -> metrics by name, of which `det/AP/<class>` and `seg/IoU/<class>` are shown, and the numbers
            of images in which a class was looked for, where they are given.
    """
    rows: dict[str, dict[str, Any]] = {}
    for prefix in ("det/AP", "det/images", "seg/IoU", "seg/images"):
        for heading, metrics in columns.items():
            for name, value in metrics.items():
                if name.startswith(f"{prefix}/"):
                    label = name.removeprefix(f"{prefix}/")
                    shown = int(value) if prefix.endswith("images") else value
                    rows.setdefault(label, {"class": label})[f"{prefix} {heading}"] = shown
    return list(rows.values())


def teacher_table(checked: Sequence["Checked"]) -> Rows:
    """Worth of the teachers of a task: a row for all classes that each knows, then one for each class.

    Two columns a teacher: its score in percent, and its calibration error in percent.
    """
    rows: dict[str, dict[str, Any]] = {"all": {"class": "all"}}
    for number, each in enumerate(checked, start=1):
        mark = f" {number}" if len(checked) > 1 else ""
        for name, value in each.metrics.items():
            label = "all" if name == TASK_METRIC[each.task] else name.removeprefix(f"{CLASS_METRIC[each.task]}/")
            rows.setdefault(label, {"class": label})[f"{CLASS_METRIC[each.task]}{mark}"] = value
        errors = {"all": each.error, **each.calibration}
        for label, error in errors.items():
            rows.setdefault(label, {"class": label})[f"calibration error{mark}"] = error and 100 * error
    return list(rows.values())


def by_source(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Divide metrics by the data set that they are of: source -> metrics by name; without those of all together."""
    sources: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        source, _, rest = name.partition("/")
        if source not in (*TASKS, *METRIC_GROUPS) and rest.startswith(tuple(f"{task}/" for task in TASKS)):
            sources.setdefault(source, {})[rest] = value
    return sources
