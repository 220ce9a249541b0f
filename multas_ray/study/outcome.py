"""What a study found: means with intervals, differences between arms, as JSON, Markdown, plots and a page."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from multas_ray.config import TrackingConfig
from multas_ray.report.html import Page
from multas_ray.report.plots import class_differences, estimates, mean_curves, trade_off
from multas_ray.report.statistics import Estimate, estimate, multi_task_gain, paired_difference
from multas_ray.storage import StoragePath
from multas_ray.study.plan import Study
from multas_ray.study.trials import Result
from multas_ray.train.tracking import start_wandb, wandb_image

HEADLINE = ("det/AP", "det/AP50", "seg/mIoU")
TASK_METRIC = {"det": "det/AP", "seg": "seg/mIoU"}
"""What an arm is compared with the single-task network of that name by."""
REFERENCES = ("det", "seg", "mtl", "full", "kd")
"""The arms that every other is compared with, and each of them with those before it."""
LEAST_SEEDS = 3
"""Of an arm that the study speaks about; others are extras."""
GAIN = "gain"


class Outcome:
    """The results of a study, by arm and seed."""

    def __init__(self, study: Study, results: Mapping[str, Result]) -> None:
        self.study = study
        self.arms: dict[str, dict[int, Result]] = defaultdict(dict)
        for arm in study.arms:
            for seed in study.seeds:
                if f"{arm}-{seed}" in results:
                    self.arms[arm][seed] = results[f"{arm}-{seed}"]

    def metrics(self, arm: str) -> dict[str, dict[int, float]]:
        """Each metric of an arm by seed, and what it gains over the single-task networks where it has both tasks."""
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for seed, result in self.arms[arm].items():
            for metric, value in result["final"].items():
                found[metric][seed] = value
            single = {
                task: self.arms.get(task, {}).get(seed, {"final": {}})["final"].get(metric)
                for task, metric in TASK_METRIC.items()
            }
            own = {task: result["final"].get(metric) for task, metric in TASK_METRIC.items()}
            # Over a network that has learnt nothing there is no relative gain.
            if all(single.values()) and None not in own.values():
                found[GAIN][seed] = multi_task_gain(own, single)
        return dict(found)

    def summary(self, arm: str) -> dict[str, Any]:
        """Seeds, and the mean of every metric with its interval."""
        metrics = {metric: estimate(list(values.values())) for metric, values in self.metrics(arm).items()}
        return {"seeds": len(self.arms[arm]), "metrics": {name: _rounded(value) for name, value in metrics.items()}}

    def differences(self, arms: Sequence[str], others: Sequence[str]) -> list[dict[str, Any]]:
        """Paired differences of arms from those references that are among the others, in the headline metrics that both
        have."""
        found = []
        for arm in arms:
            before = REFERENCES[: REFERENCES.index(arm)] if arm in REFERENCES else REFERENCES
            for against in (name for name in before if name in others):
                mine, theirs = self.metrics(arm), self.metrics(against)
                for metric in HEADLINE:
                    difference = paired_difference(mine.get(metric, {}), theirs.get(metric, {}))
                    if difference is not None:
                        found.append({"arm": arm, "against": against, "metric": metric, **_rounded(difference)})
        return found

    def counted(self) -> tuple[list[str], list[str]]:
        """Arms with enough seeds, and the others that have any."""
        present = [arm for arm in self.study.arms if self.arms.get(arm)]
        enough = [arm for arm in present if len(self.arms[arm]) >= LEAST_SEEDS]
        return enough, [arm for arm in present if arm not in enough]

    def cost(self, arm: str) -> dict[str, float]:
        """Million parameters, GMACs, minutes of a training, and minutes of its teachers' trainings."""
        results = list(self.arms[arm].values())
        teachers = [
            sum(self.arms[arm][seed]["seconds"] for arm, seed in map(_split, result["needs"]) if seed in self.arms[arm])
            for result in results
        ]
        first = results[0]
        return {
            "million parameters": round(first["million_parameters"], 2),
            "GMACs": round(first["gmacs"], 2),
            "minutes": round(estimate([result["seconds"] for result in results]).mean / 60, 1),
            "teachers' minutes": round(estimate(teachers).mean / 60, 1),
        }


def write_outcome(
    study: Study, results: Mapping[str, Result], pictures: Mapping[str, bytes] | None = None
) -> StoragePath:
    """Write study.json, extras.json, study.md and plots into the study's results, and study.html into its runs.

    Args:
        pictures: heading -> PNG of images of the data set, for study.html alone.

    Returns:
        Where study.html is.
    """
    outcome = Outcome(study, results)
    folder = StoragePath(study.results)
    enough, few = outcome.counted()
    arms = enough + few
    for name, own, others in (("study.json", enough, enough), ("extras.json", few, arms)):
        tree = {"arms": {arm: outcome.summary(arm) for arm in own}, "differences": outcome.differences(own, others)}
        (folder / name).write_text(json.dumps(tree, indent=1) + "\n")
    plots = _plots(outcome, arms)
    for name, png in plots.items():
        (folder / f"{name}.png").write_bytes(png)
    tables = _tables(outcome, arms)
    (folder / "study.md").write_text(_markdown(study, tables, plots))
    page = Page(
        title=f"Study {study.name}",
        intro=_intro(),
        tables=tables,
        figures={TITLES[name]: png for name, png in plots.items()},
        pictures=pictures or {},
    )
    html = StoragePath(study.runs) / "study.html"
    html.write_text(page.html())
    _publish(study, tables, plots)
    return html


def _publish(study: Study, tables: Mapping[str, Sequence[Mapping[str, Any]]], plots: Mapping[str, bytes]) -> None:
    """Show tables and plots in W&B, as the summary of the trials' group."""
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


TITLES = {
    "arms": "Metrics by arm: mean and 95 % interval, a dot a seed",
    "trade_off": "Detection against segmentation",
    "classes": "By class, against the single-task networks",
    "curves": "Learning curves, mean over seeds",
}


def _plots(outcome: Outcome, arms: Sequence[str]) -> dict[str, bytes]:
    metrics = {arm: outcome.metrics(arm) for arm in arms}
    x, y = TASK_METRIC.values()
    both = {arm: own for arm, own in metrics.items() if {x, y} <= own.keys()}
    curves = {arm: [result["curve"] for result in outcome.arms[arm].values()] for arm in arms}
    single = {
        key: values
        for task in TASK_METRIC
        if task in metrics
        for key, values in metrics[task].items()
        if key.startswith(f"{task}/")
    }
    return {
        "arms": estimates(
            {arm: {m: list(v.values()) for m, v in own.items()} for arm, own in metrics.items()}, HEADLINE
        ),
        "trade_off": trade_off(both, x, y, single, arms),
        "classes": class_differences(
            {arm: own for arm, own in metrics.items() if arm not in TASK_METRIC}, single, arms
        ),
        "curves": mean_curves(curves),
    }


def summary_tables(study: Study, results: Mapping[str, Result]) -> dict[str, list[dict[str, Any]]]:
    """Heading -> rows: the arms, and their paired differences."""
    outcome = Outcome(study, results)
    enough, few = outcome.counted()
    return {heading: rows for heading, rows in _tables(outcome, enough + few).items() if rows}


def _tables(outcome: Outcome, arms: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    rows = []
    for arm in arms:
        metrics = outcome.metrics(arm)
        cells = {m: _plus_minus(estimate(list(metrics[m].values()))) if m in metrics else "" for m in (*HEADLINE, GAIN)}
        cells["gain over single-task [%]"] = cells.pop(GAIN)
        rows.append({"arm": arm, "seeds": len(outcome.arms[arm]), **cells, **outcome.cost(arm)})
    differences = [
        {
            "arm": line["arm"],
            "against": line["against"],
            "metric": line["metric"],
            "difference": f"{line['mean']:+.2f}",
            "95 % interval": "" if line["low"] is None else f"{line['low']:+.2f} .. {line['high']:+.2f}",
            "clear of 0": "" if line["low"] is None else "yes" if line["low"] * line["high"] > 0 else "no",
        }
        for line in outcome.differences(arms, arms)
    ]
    return {"Arms": rows, "Paired differences": differences}


def _intro() -> str:
    return (
        "Metrics in percent: mean over seeds, with half of the 95 % confidence interval (Student's t). Differences are "
        f"paired by seed. Arms with fewer than {LEAST_SEEDS} seeds are hints, not findings. The gain is the mean over "
        "both tasks of the relative gain in det/AP and seg/mIoU over the single-task networks of the same seed."
    )


def _markdown(study: Study, tables: Mapping[str, Sequence[Mapping[str, Any]]], plots: Mapping[str, bytes]) -> str:
    parts = [f"# Study {study.name}", _intro()]
    parts += [f"## {heading}\n\n{_markdown_table(rows)}" for heading, rows in tables.items() if rows]
    parts += [f"## {TITLES[name]}\n\n![{TITLES[name]}]({name}.png)" for name in plots]
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plus_minus(value: Estimate) -> str:
    half = "" if math.isnan(value.low) else f" ± {value.high - value.mean:.1f}"
    return f"{value.mean:.1f}{half}"


def _rounded(value: Estimate) -> dict[str, float | None]:
    """For JSON, which knows no NaN."""
    return {name: None if math.isnan(number) else round(number, 3) for name, number in value._asdict().items()}


def _split(trial: str) -> tuple[str, int]:
    arm, _, seed = trial.rpartition("-")
    return arm, int(seed)
