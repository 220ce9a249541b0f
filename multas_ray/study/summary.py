"""The summary of a study: study.json, extras.json, study.md, plots, study.html and a run in W&B."""

import json
import math
from collections.abc import Iterable, Mapping
from statistics import fmean

from multas_ray.config import TrackingConfig
from multas_ray.evaluate.scores import TASK_METRIC
from multas_ray.report.html import Page
from multas_ray.report.plots import class_bars, class_differences, estimates, mean_curves, trade_off
from multas_ray.report.statistics import Estimate, estimate
from multas_ray.report.tables import Rows
from multas_ray.storage import StoragePath
from multas_ray.study.comparison import GAIN, MIN_SEEDS, Comparison
from multas_ray.study.layout import Study
from multas_ray.study.results import TrialResult
from multas_ray.train.tracking import start_wandb, wandb_image

INTRO = (
    "Metrics in percent: mean over seeds, with half of the 95 % confidence interval (Student's t). Differences are "
    f"paired by seed. Arms with fewer than {MIN_SEEDS} seeds are hints, not findings. The gain is the mean over "
    "both tasks of the relative gain in det/AP and seg/mIoU over the single-task networks of the same seed."
)
TITLES = {
    "arms": "Metrics by arm: mean and 95 % interval, a dot a seed",
    "trade_off": "Detection against segmentation",
    "classes": "By class, against the single-task networks",
    "by_class": "By class, mean over seeds",
    "curves": "Learning curves, mean over seeds",
}
"""Name of a plot's file -> its heading."""


def write_summary(
    study: Study, results: Mapping[str, TrialResult], pictures: Mapping[str, bytes] | None = None
) -> StoragePath:
    """Write study.json, extras.json, study.md and plots into the study's results, and study.html into its runs.

    Args:
        study: its arms without results are left out.
        results: by trial name; at least one.
        pictures: heading -> PNG of images of the data set, for study.html alone.

    Returns:
        Path of study.html.
    """
    comparison = Comparison(study, results)
    findings, hints = comparison.findings, comparison.hints
    folder = StoragePath(study.results)
    for name, arms, others in (("study.json", findings, findings), ("extras.json", hints, list(comparison.arms))):
        tree = {
            "arms": {arm: comparison.summary(arm) for arm in arms},
            "differences": comparison.differences(arms, others),
        }
        (folder / name).write_text(json.dumps(tree, indent=1) + "\n")
    plots = _plots(comparison)
    for name, png in plots.items():
        (folder / f"{name}.png").write_bytes(png)
    tables = _tables(comparison)
    (folder / "study.md").write_text(_markdown(study, tables, plots))
    page = Page(
        title=f"Study {study.name}",
        intro=INTRO,
        tables=tables,
        figures={TITLES[name]: png for name, png in plots.items()},
        pictures=pictures or {},
    )
    html = StoragePath(study.runs) / "study.html"
    html.write_text(page.html())
    _publish(study, tables, plots)
    return html


def summary_tables(study: Study, results: Mapping[str, TrialResult]) -> dict[str, Rows]:
    """Heading -> rows: the arms, and their paired differences; a table without rows is left out."""
    return {heading: rows for heading, rows in _tables(Comparison(study, results)).items() if rows}


def _tables(comparison: Comparison) -> dict[str, Rows]:
    return {"Arms": _arm_rows(comparison), "Paired differences": _difference_rows(comparison)}


def _arm_rows(comparison: Comparison) -> Rows:
    headings = {metric: metric for metric in comparison.headline} | {GAIN: "gain over single-task [%]"}
    present = {metric for arm in comparison.arms for metric in comparison.metrics(arm)}
    shown = {metric: heading for metric, heading in headings.items() if metric in present}
    rows = []
    for arm, by_seed in comparison.arms.items():
        metrics = comparison.metrics(arm)
        cells = {
            heading: _plus_minus(estimate(list(metrics[metric].values()))) if metric in metrics else ""
            for metric, heading in shown.items()
        }
        rows.append({"arm": arm, "seeds": len(by_seed), **cells, **comparison.cost(arm)})
    return rows


def _difference_rows(comparison: Comparison) -> Rows:
    arms = list(comparison.arms)
    return [
        {
            "arm": line["arm"],
            "against": line["against"],
            "metric": line["metric"],
            "difference": f"{line['mean']:+.2f}",
            "95 % interval": "" if line["low"] is None else f"{line['low']:+.2f} .. {line['high']:+.2f}",
            "clear of 0": "" if line["low"] is None else "yes" if line["low"] * line["high"] > 0 else "no",
        }
        for line in comparison.differences(arms, arms)
    ]


def _plus_minus(value: Estimate) -> str:
    half = "" if math.isnan(value.low) else f" ± {value.high - value.mean:.1f}"
    return f"{value.mean:.1f}{half}"


def _plots(comparison: Comparison) -> dict[str, bytes]:
    arms = list(comparison.arms)
    metrics = {arm: comparison.metrics(arm) for arm in arms}
    x, y = TASK_METRIC.values()
    both = {arm: values for arm, values in metrics.items() if {x, y} <= values.keys()}
    multi = {arm: values for arm, values in metrics.items() if arm not in TASK_METRIC}
    single = {
        metric: values
        for task in TASK_METRIC
        if task in metrics
        for metric, values in metrics[task].items()
        if metric.startswith(f"{task}/")
    }
    seeds = {arm: {metric: list(each.values()) for metric, each in values.items()} for arm, values in metrics.items()}
    means = {arm: {metric: fmean(each.values()) for metric, each in values.items()} for arm, values in metrics.items()}
    curves = {arm: [result.curve for result in by_seed.values()] for arm, by_seed in comparison.arms.items()}
    return {
        "arms": estimates(seeds, comparison.headline),
        "trade_off": trade_off(both, x, y, single, arms),
        **({"classes": class_differences(multi, single, arms)} if single else {"by_class": class_bars(means)}),
        "curves": mean_curves(curves),
    }


def _markdown(study: Study, tables: Mapping[str, Rows], plots: Iterable[str]) -> str:
    parts = [f"# Study {study.name}", INTRO]
    parts += [f"## {heading}\n\n{_markdown_table(rows)}" for heading, rows in tables.items() if rows]
    parts += [f"## {TITLES[name]}\n\n![{TITLES[name]}]({name}.png)" for name in plots]
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Rows) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _publish(study: Study, tables: Mapping[str, Rows], plots: Mapping[str, bytes]) -> None:
    """Log tables and plots to W&B, as the run `summary` of the trials' group."""
    tracking = TrackingConfig.model_validate(study.base.get("tracking", {}) | {"group": study.name})
    run = start_wandb(StoragePath(study.runs) / "summary", tracking, study.model_dump(mode="json"), "summary")
    if run is None:
        return
    import wandb

    with run:
        for heading, rows in tables.items():
            if rows:
                data = [[str(value) for value in row.values()] for row in rows]
                run.log({heading: wandb.Table(columns=list(rows[0]), data=data)})
        run.log({TITLES[name]: wandb_image(png, TITLES[name]) for name, png in plots.items()})
