"""Arms of a study compared: means with intervals, differences paired by seed, costs."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from multas_ray.errors import UserError
from multas_ray.evaluate.scores import CLASS_METRIC, HEADLINE, TASK_METRIC
from multas_ray.report.statistics import Estimate, estimate, multi_task_gain, paired_difference
from multas_ray.study.layout import Study
from multas_ray.study.results import TrialResult

MIN_SEEDS = 3
"""Seeds that make an arm's results a finding; those of fewer are hints."""
GAIN = "gain"
"""Multi-task gain over the single-task arms, in percent."""


class Comparison:
    """The results of a study's arms, by seed.

    Attributes:
        findings: arms with at least MIN_SEEDS results.
        hints: the other arms that have a result.
        arms: arm -> seed -> result, findings before hints.
        groups: metric of a group of classes -> the metrics whose mean it is.
        headline: metrics to show and to compare.
    """

    def __init__(self, study: Study, results: Mapping[str, TrialResult]) -> None:
        """Sort results, given by trial name, by arm and seed.

        Raises:
            UserError: no result has a class of the study's groups.
        """
        self.results = results
        self.references = study.references
        self.groups = {
            f"{CLASS_METRIC[task]} ({group})": [f"{CLASS_METRIC[task]}/{name}" for name in names]
            for group, tasks in study.class_groups.items()
            for task, names in tasks.items()
        }
        known = {metric for result in results.values() for metric in result.final}
        for name, metrics in self.groups.items():
            if not known.issuperset(metrics):
                raise UserError(f"class_groups: no arm has {min(set(metrics) - known)}, which '{name}' is to be of")
        self.headline = (*HEADLINE, *self.groups)
        by_arm = {
            arm: {seed: results[f"{arm}-{seed}"] for seed in study.seeds if f"{arm}-{seed}" in results}
            for arm in study.arms
        }
        self.findings = [arm for arm, by_seed in by_arm.items() if len(by_seed) >= MIN_SEEDS]
        self.hints = [arm for arm, by_seed in by_arm.items() if 0 < len(by_seed) < MIN_SEEDS]
        self.arms = {arm: by_arm[arm] for arm in (*self.findings, *self.hints)}

    def metrics(self, arm: str) -> dict[str, dict[int, float]]:
        """Metric -> seed -> value in percent, with the groups' and, where the arm has both tasks, GAIN."""
        values: dict[str, dict[int, float]] = defaultdict(dict)
        for seed, result in self.arms[arm].items():
            for metric, value in result.final.items():
                values[metric][seed] = value
            for name, metrics in self.groups.items():
                if result.final.keys() >= set(metrics):
                    values[name][seed] = fmean(result.final[metric] for metric in metrics)
            gain = self._gain(result, seed)
            if gain is not None:
                values[GAIN][seed] = gain
        return dict(values)

    def _gain(self, result: TrialResult, seed: int) -> float | None:
        """A result's gain over the single-task arms of the same seed; None if there is nothing to compare."""
        multi: dict[str, float] = {}
        single: dict[str, float] = {}
        for task, metric in TASK_METRIC.items():
            reference = self.arms.get(task, {}).get(seed)
            # No relative gain over a network that has learnt nothing: its metric is 0.
            if reference is None or not reference.final.get(metric) or metric not in result.final:
                return None
            multi[task], single[task] = result.final[metric], reference.final[metric]
        return multi_task_gain(multi, single)

    def summary(self, arm: str) -> dict[str, Any]:
        """Number of seeds, and of every metric the mean with its interval, as JSON."""
        metrics = {metric: estimate(list(values.values())) for metric, values in self.metrics(arm).items()}
        return {"seeds": len(self.arms[arm]), "metrics": {name: _json(value) for name, value in metrics.items()}}

    def differences(self, arms: Sequence[str], others: Sequence[str]) -> list[dict[str, Any]]:
        """Paired differences in the headline metrics, as JSON; means over different classes are not compared.

        Args:
            arms: the arms to compare.
            others: the arms to compare them with, so far as they are references.
        """
        rows = []
        for arm in arms:
            before = self.references[: self.references.index(arm)] if arm in self.references else self.references
            for reference in (name for name in before if name in others):
                ours, theirs = self.metrics(arm), self.metrics(reference)
                for metric in self.headline:
                    difference = paired_difference(ours.get(metric, {}), theirs.get(metric, {}))
                    alike = metric in self.groups or _classes(ours, metric) == _classes(theirs, metric)
                    if difference is not None and alike:
                        rows.append({"arm": arm, "against": reference, "metric": metric, **_json(difference)})
        return rows

    def cost(self, arm: str) -> dict[str, float]:
        """Million parameters, GMACs, minutes of a training, and minutes of its teachers' trainings."""
        results = list(self.arms[arm].values())
        teachers = [
            sum(self.results[name].seconds for name in result.needs if name in self.results) for result in results
        ]
        return {
            "million parameters": round(results[0].million_parameters, 2),
            "GMACs": round(results[0].gmacs, 2),
            "minutes": round(estimate([result.seconds for result in results]).mean / 60, 1),
            "teachers' minutes": round(estimate(teachers).mean / 60, 1),
        }


def _classes(metrics: Iterable[str], metric: str) -> set[str]:
    """The metrics by class of a metric's task."""
    prefix = f"{CLASS_METRIC[metric.partition('/')[0]]}/"
    return {name for name in metrics if name.startswith(prefix)}


def _json(value: Estimate) -> dict[str, float | None]:
    """An estimate without NaN, which JSON does not know."""
    return {name: None if math.isnan(number) else round(number, 3) for name, number in value._asdict().items()}
