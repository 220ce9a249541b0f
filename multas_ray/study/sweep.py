"""A search for the best configuration with Ray Tune: trainings side by side, the poor ones stopped early."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import replace
from typing import Any

import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from multas_ray.config import Config
from multas_ray.documents import read_json
from multas_ray.errors import RunError, UserError, first_line, root_cause
from multas_ray.ray_setup import start_ray, warn_if_passing
from multas_ray.report.html import Page
from multas_ray.report.sweep_plots import best_so_far, parallel_coordinates
from multas_ray.run_folder import read_metrics
from multas_ray.storage import StoragePath
from multas_ray.study.plan import Sweep, change_paths
from multas_ray.study.search import parse_search
from multas_ray.study.trials import trials_that_fit
from multas_ray.train.run import cpus_needed, train

LOOK_EVERY_S = 1.0
SWEEP, BEST, TUNE = "sweep.json", "best.yaml", "tune"


def run_sweep(sweep: Sweep) -> dict[str, Any]:
    """Search, or go on with a search that was cut short.

    Returns:
        What sweep.json holds: trials (name, parameters, best value of the metric, its step, steps, error) and best.

    Raises:
        UserError: a configuration is wrong, or the folder holds another search.
        RunError: every trial failed.
    """
    space = parse_search(sweep.search)
    out = StoragePath(sweep.out)
    # Trials start in folders of their own, where other paths mean something else.
    sweep = replace(sweep, tree=change_paths(deepcopy(sweep.tree), lambda path: StoragePath(path).uri))
    example = sweep.config({path: domain.sample() for path, domain in space.items()}, (out / "example").uri).absolute()
    if example.evaluate.every_steps is None and sweep.scheduler != "none":
        raise UserError(f"--scheduler {sweep.scheduler}: compares trials on the way: set evaluate.every_steps")
    task = sweep.metric.partition("/")[0]
    if sweep.metric != "score" and task not in example.model.tasks:
        raise UserError(
            f"--metric {sweep.metric}: {task} is not trained (model.tasks: {', '.join(example.model.tasks)})"
        )
    warn_if_passing("--out", out.uri)
    _check_folder(out, sweep)
    room = sweep.parallel or trials_that_fit(example)
    print(f"{sweep.trials} trials, {room} at a time, each of at most {example.train.steps} steps", flush=True)
    start_ray(room * cpus_needed(example) + 1)
    outcomes = _tuner(sweep, space, room, example).fit()
    # In the order in which they were drawn: Tune gives them in another when it goes on.
    trials = sorted((_trial(sweep, outcome) for outcome in outcomes), key=lambda trial: trial["name"] or "~")
    scored = [trial for trial in trials if trial["value"] is not None]
    if not scored:
        raise RunError(f"all {len(trials)} trials failed; {trials[0]['name']}: {trials[0]['error']}")
    best = max(scored, key=lambda trial: trial["value"])
    result = {"metric": sweep.metric, "trials": trials, "best": best}
    (out / SWEEP).write_text(json.dumps(result, indent=1) + "\n")
    config = sweep.config(best["parameters"], (out / "best").uri)
    (out / BEST).write_text(config.to_yaml())
    (out / "sweep.html").write_text(_page(sweep, result))
    return result


def _tuner(sweep: Sweep, space: Mapping[str, Any], room: int, example: Config) -> tune.Tuner:
    out = StoragePath(sweep.out)

    def run(drawn: dict[str, Any]) -> None:
        name = tune.get_context().get_trial_id()
        config = sweep.config(drawn, (out / name).uri).absolute()
        with ThreadPoolExecutor(1) as thread:
            training = thread.submit(train, config)
            reported = 0
            while not training.done():
                wait([training], timeout=LOOK_EVERY_S)
                for line in _evaluations(config.train.run, sweep.metric, after=reported):
                    # Of the last one Tune hears when the run is finished, as it may stop a trial at any report.
                    if line["step"] < config.train.steps:
                        reported = line["step"]
                        tune.report({"step": line["step"], sweep.metric: line[sweep.metric]})
            training.result()
            for line in _evaluations(config.train.run, sweep.metric, after=reported):
                tune.report({"step": line["step"], sweep.metric: line[sweep.metric]})

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
            callbacks=[_News(sweep)],
        ),
    )


class _News(tune.Callback):
    """Prints a line on every trial that has ended."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune, in the process that runs the search."""
        lines = _evaluations((StoragePath(self.sweep.out) / trial.trial_id).uri, self.sweep.metric, after=0)
        if lines:
            top = max(line[self.sweep.metric] for line in lines)
            self._tell(trials, trial, f"{self.sweep.metric} {top:.2f} within {lines[-1]['step']} steps")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune, in the process that runs the search."""
        self._tell(trials, trial, "failed")

    def _tell(self, trials: list[Any], trial: Any, news: str) -> None:
        # This one does not say so yet.
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
    """Ray's, without its pauses: while there is little to compare with, it would end and start trials in turns."""

    def _on_insufficient_samples(self, *arguments: Any) -> str:
        return TrialScheduler.CONTINUE


def _evaluations(run: str, metric: str, after: int) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if {"score", metric} <= line.keys() and line["step"] > after]


def _check_folder(out: StoragePath, sweep: Sweep) -> None:
    """Remember what is searched, or check that the folder's search is the same."""
    file = out / "search.json"
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


def _trial(sweep: Sweep, outcome: Any) -> dict[str, Any]:
    """What is kept of a trial. Its own record counts, which holds all of its evaluations."""
    name = outcome.metrics.get("trial_id") if outcome.metrics else None
    lines = _evaluations((StoragePath(sweep.out) / name).uri, sweep.metric, after=0) if name else []
    top = max(lines, key=lambda line: line[sweep.metric], default=None)
    return {
        "name": name,
        "parameters": dict(outcome.config),
        "value": None if top is None else top[sweep.metric],
        "step": None if top is None else top["step"],
        "steps": max((line["step"] for line in lines), default=0),
        "error": None if outcome.error is None else first_line(root_cause(outcome.error)),
    }


def ranking(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table of the trials, the best first."""
    ranked = sorted(result["trials"], key=lambda trial: -(trial["value"] if trial["value"] is not None else -1))
    return [
        {
            "trial": trial["name"],
            **{path: _short(value) for path, value in trial["parameters"].items()},
            result["metric"]: trial["error"] if trial["value"] is None else f"{trial['value']:.2f}",
            "at step": trial["step"],
            "trained for": trial["steps"],
        }
        for trial in ranked
    ]


def _page(sweep: Sweep, result: Mapping[str, Any]) -> str:
    rows = ranking(result)
    return Page(
        title=f"Sweep {StoragePath(sweep.out).name}",
        intro=f"{len(rows)} trials, best {sweep.metric} {result['best']['value']:.2f}; {BEST} is its configuration",
        tables={"Trials": rows},
        figures={
            "Parameters and outcome": parallel_coordinates(result["trials"], sweep.metric),
            "Best so far": best_so_far(result["trials"], sweep.metric),
        },
        texts={"Best parameters": yaml.safe_dump(result["best"]["parameters"], sort_keys=False)},
    ).html()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
