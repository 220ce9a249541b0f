"""Searches for the best configuration with Ray Tune: trainings side by side, the poor ones stopped early."""

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import replace
from typing import Any, TypedDict

import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from multas_ray.config import Config
from multas_ray.documents import read_json
from multas_ray.errors import RunError, UserError, first_line, root_cause
from multas_ray.placement import cpus_needed
from multas_ray.ray_setup import start_ray, warn_if_passing
from multas_ray.report.html import Page
from multas_ray.report.sweep_plots import SweepTrial, best_so_far, parallel_coordinates
from multas_ray.run_folder import read_metrics
from multas_ray.storage import StoragePath
from multas_ray.study.layout import change_paths
from multas_ray.study.search import Sweep, parse_search
from multas_ray.study.trials import trials_that_fit
from multas_ray.train.run import train

POLL_S = 1.0
SEARCH, SWEEP, BEST, TUNE = "search.json", "sweep.json", "best.yaml", "tune"


class SweepResult(TypedDict):
    """What sweep.json holds."""

    metric: str
    trials: list[SweepTrial]
    """In the order in which they were drawn."""
    best: SweepTrial


def run_sweep(sweep: Sweep) -> SweepResult:
    """Search, or resume a search that was cut short.

    Raises:
        UserError: a configuration is wrong, or the folder holds another search.
        RunError: every trial failed.
    """
    space = parse_search(sweep.search)
    out = StoragePath(sweep.out)
    # A trial's process starts in another folder, where relative paths mean something else.
    sweep = replace(sweep, tree=change_paths(deepcopy(sweep.tree), lambda path: StoragePath(path).uri))
    example = sweep.config({path: domain.sample() for path, domain in space.items()}, (out / "example").uri).absolute()
    _check_metric(sweep, example)
    warn_if_passing("--out", out.uri)
    _check_folder(out, sweep)
    room = sweep.parallel or trials_that_fit(example)
    print(f"{sweep.trials} trials, {room} at a time, each of at most {example.train.steps} steps", flush=True)
    start_ray(room * cpus_needed(example) + 1)
    ended = _tuner(sweep, space, room, example).fit()
    # A resumed Tune returns trials in another order than the one in which they were drawn.
    trials = sorted((_sweep_trial(sweep, trial) for trial in ended), key=lambda trial: trial["name"] or "~")
    scored = [trial for trial in trials if trial["value"] is not None]
    if not scored:
        raise RunError(f"all {len(trials)} trials failed; {trials[0]['name']}: {trials[0]['error']}")
    result: SweepResult = {"metric": sweep.metric, "trials": trials, "best": max(scored, key=_value)}
    (out / SWEEP).write_text(json.dumps(result, indent=1) + "\n")
    config = sweep.config(result["best"]["parameters"], (out / "best").uri)
    (out / BEST).write_text(config.to_yaml())
    (out / "sweep.html").write_text(_page(sweep, result))
    return result


def _check_metric(sweep: Sweep, example: Config) -> None:
    """Raise a UserError if trials cannot be compared: their configurations do not evaluate what is asked for."""
    if example.evaluate.every_steps is None and sweep.scheduler != "none":
        raise UserError(f"--scheduler {sweep.scheduler}: compares trials on the way: set evaluate.every_steps")
    task = sweep.metric.partition("/")[0]
    if sweep.metric != "score" and task not in example.model.tasks:
        raise UserError(
            f"--metric {sweep.metric}: {task} is not trained (model.tasks: {', '.join(example.model.tasks)})"
        )


def _check_folder(out: StoragePath, sweep: Sweep) -> None:
    """Write down the search, or raise a UserError if the folder holds another one."""
    file = out / SEARCH
    wanted = {
        **{"search": sorted(sweep.search), "trials": sweep.trials, "seed": sweep.seed},
        **{"scheduler": sweep.scheduler, "metric": sweep.metric, "tree": sweep.tree},
    }
    if not file.exists():
        file.write_text(json.dumps(wanted, indent=1) + "\n")
        return
    before = read_json(file)
    if not isinstance(before, dict):
        raise UserError(f"{file}: not a search's description; delete it, or choose another folder")
    changed = next((key for key, value in wanted.items() if before.get(key) != value), None)
    if changed is not None:
        raise UserError(f"--out {out}: holds a search with another {changed}; choose another folder")


def _tuner(sweep: Sweep, space: Mapping[str, Any], room: int, example: Config) -> tune.Tuner:
    out = StoragePath(sweep.out)

    def run(drawn: dict[str, Any]) -> None:
        name = tune.get_context().get_trial_id()
        _train_trial(sweep.config(drawn, (out / name).uri).absolute(), sweep.metric)

    # The trial only waits for the workers, which have their own share.
    trainable = tune.with_resources(run, {"cpu": 0.01})
    path = (out / TUNE).uri
    if (out / TUNE).exists() and tune.Tuner.can_restore(path):
        return tune.Tuner.restore(
            path, trainable, param_space=dict(space), resume_unfinished=True, restart_errored=True
        )
    return tune.Tuner(
        trainable,
        param_space=dict(space),
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode="max",
            num_samples=sweep.trials,
            scheduler=_scheduler(sweep, example),
            search_alg=tune.search.BasicVariantGenerator(random_state=sweep.seed, max_concurrent=room),
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=out.uri,
            verbose=0,
            log_to_file=False,
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[_PrintEnded(sweep)],
        ),
    )


def _train_trial(config: Config, metric: str) -> None:
    """Train in a trial of Tune, and report every evaluation to it.

    Tune may stop a trial at any report: the last evaluation is reported when the run is finished.
    """
    # From the run's own record, not by Ray's TuneReportCallback. Tried with Ray 2.60, it let Tune stop a trial at the
    # last report, before its result.json was written; it lost the report of a worker that died after it, which a
    # resumed run does not repeat; and it takes a process of 125 MB per trial.
    reported = 0

    def report(before: float) -> None:
        nonlocal reported
        for line in _evaluations(config.train.run, metric, after=reported):
            if line["step"] < before:
                reported = line["step"]
                tune.report({"step": line["step"], metric: line[metric]})

    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(train, config)
        while wait([training], timeout=POLL_S).not_done:
            report(before=config.train.steps)
        training.result()
        report(before=math.inf)


class _PrintEnded(tune.Callback):
    """Prints a line on every trial that has ended."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print a trial's result; called by Tune in the process that runs the search."""
        lines = _evaluations((StoragePath(self.sweep.out) / trial.trial_id).uri, self.sweep.metric)
        if lines:
            top = max(line[self.sweep.metric] for line in lines)
            self._print(trials, trial, f"{self.sweep.metric} {top:.2f} within {lines[-1]['step']} steps")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial failed; called by Tune in the process that runs the search."""
        self._print(trials, trial, "failed")

    def _print(self, trials: list[Any], trial: Any, news: str) -> None:
        # Tune counts this trial as finished only after the callback.
        ended = sum(other.is_finished() or other is trial for other in trials)
        print(f"trial {trial.trial_id}: {news}; {ended} of {self.sweep.trials} trials have ended", flush=True)


def _scheduler(sweep: Sweep, config: Config) -> TrialScheduler:
    steps, every = config.train.steps, config.evaluate.every_steps or config.train.steps
    if sweep.scheduler == "asha":
        return ASHAScheduler(time_attr="step", max_t=steps, grace_period=min(every, steps), reduction_factor=3)
    if sweep.scheduler == "median":
        return _Median(time_attr="step", grace_period=min(every, steps), min_samples_required=3)
    return FIFOScheduler()


class _Median(MedianStoppingRule):
    """Ray's rule without its pauses: with little to compare with, it would pause and resume trials in turns."""

    def _on_insufficient_samples(self, *arguments: Any) -> Any:
        return TrialScheduler.CONTINUE


def _evaluations(run: str, metric: str, after: int = 0) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl that have the metric, of later steps than `after`."""
    return [line for line in read_metrics(run) if {"score", metric} <= line.keys() and line["step"] > after]


def _sweep_trial(sweep: Sweep, trial: Any) -> SweepTrial:
    """The record of a trial that has ended, from its run folder, which has all of its evaluations."""
    name = trial.metrics.get("trial_id") if trial.metrics else None
    lines = _evaluations((StoragePath(sweep.out) / name).uri, sweep.metric) if name else []
    top = max(lines, key=lambda line: line[sweep.metric], default=None)
    return {
        "name": name,
        "parameters": dict(trial.config),
        "value": None if top is None else top[sweep.metric],
        "step": None if top is None else top["step"],
        "steps": max((line["step"] for line in lines), default=0),
        "error": None if trial.error is None else first_line(root_cause(trial.error)),
    }


def _value(trial: SweepTrial) -> float:
    """The metric of a trial, from 0 to 100; -1 if it failed."""
    return -1 if trial["value"] is None else trial["value"]


def ranking(result: SweepResult) -> list[dict[str, Any]]:
    """Rows of a table of the trials, the best first."""
    return [
        {
            "trial": trial["name"],
            **{path: _short(value) for path, value in trial["parameters"].items()},
            result["metric"]: trial["error"] if trial["value"] is None else f"{trial['value']:.2f}",
            "at step": trial["step"],
            "trained for": trial["steps"],
        }
        for trial in sorted(result["trials"], key=_value, reverse=True)
    ]


def _page(sweep: Sweep, result: SweepResult) -> str:
    rows, best = ranking(result), result["best"]
    return Page(
        title=f"Sweep {StoragePath(sweep.out).name}",
        intro=f"{len(rows)} trials, best {sweep.metric} {_value(best):.2f}; {BEST} is its configuration",
        tables={"Trials": rows},
        figures={
            "Parameters and outcome": parallel_coordinates(result["trials"], sweep.metric),
            "Best so far": best_so_far(result["trials"], sweep.metric),
        },
        texts={"Best parameters": yaml.safe_dump(best["parameters"], sort_keys=False)},
    ).html()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
