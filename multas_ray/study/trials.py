"""Running a study's trials with Ray Tune: teachers before students, side by side where there is room, each once."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from ray import tune
from torch.utils.flop_counter import FlopCounterMode

from multas_ray.config import Config
from multas_ray.errors import RunError, UserError
from multas_ray.job import cluster_cores, first_line, root_cause, start_ray
from multas_ray.model.checkpoint import find_checkpoint
from multas_ray.model.network import count_parameters
from multas_ray.model.weights import load_network
from multas_ray.storage import StoragePath
from multas_ray.study.plan import Study, Trial, lay_out
from multas_ray.teacher.precompute import precompute
from multas_ray.train.console import follow
from multas_ray.train.run import cpus_needed, first_difference, train
from multas_ray.train.tracking import read_metrics

Result = dict[str, Any]
"""What is kept of a finished trial: arm, seed, final (metrics), best_step, steps, seconds, million_parameters, gmacs,
curve (its evaluations), needs (names of other trials) and config."""


def run_study(study: Study, arms: Sequence[str] | None = None) -> dict[str, Result]:
    """Run what is missing of a study.

    Args:
        arms: run these and what they need; default: all.

    Returns:
        The results of all finished trials, by name.

    Raises:
        UserError: the study cannot be run as it is, or a result is of another configuration.
        RunError: trials failed; all others that need none of them are done.
    """
    trials = lay_out(study)
    unknown = [arm for arm in arms or () if arm not in study.arms]
    if unknown:
        raise UserError(f"--arms {unknown[0]}: no arm of the study ({', '.join(study.arms)})")
    finished = read_results(study, trials)
    wanted = [trial for trial in trials.values() if arms is None or trial.arm in arms]
    missing = _missing(trials, wanted, finished)
    failures: dict[str, str] = {}
    if missing:
        # Trials start in folders of their own else, and paths would mean something else.
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        room = _room(study, missing)
        start_ray(room * max(cpus_needed(trial.config) for trial in missing) + 1)
        for wave in _waves(missing):
            ready = [trial for trial in wave if not failures.keys() & set(trial.needs)]
            for trial, outcome in zip(ready, _run_wave(study, ready, room), strict=True):
                if isinstance(outcome, str):
                    failures[trial.name] = outcome
                elif trial.name not in finished:
                    finished[trial.name] = _keep(study, trial)
            failures |= {trial.name: "its teachers failed" for trial in wave if trial not in ready}
    if failures:
        name, reason = next(iter(failures.items()))
        raise RunError(f"{len(failures)} of {len(missing)} trials failed; {name}: {reason}")
    return finished


def read_results(study: Study, trials: Mapping[str, Trial]) -> dict[str, Result]:
    """The kept results of a study's trials, by name.

    Raises:
        UserError: one is of another configuration.
    """
    folder = StoragePath(study.results) / "trials"
    found = {}
    for name, trial in trials.items():
        file = folder / f"{name}.json"
        if not file.exists():
            continue
        result = json.loads(file.read_text())
        kept = Config.model_validate(result["config"])
        changed = first_difference(Config.model_validate(portable(trial.config)), kept)
        if kept.train.steps != trial.config.train.steps:
            changed = "train.steps"
        if changed is not None:
            raise UserError(f"{file}: is of another {changed}; delete it, or give the arm another name")
        found[name] = result
    return found


def portable(config: Config) -> dict[str, Any]:
    """A configuration's tree with paths cut to their last part: where things are differs from machine to machine."""
    tree = config.model_dump(mode="json")
    for *sections, key in PATHS:
        section: Any = tree
        for name in sections:
            section = section[name] or {}
        if section.get(key) is not None:
            section[key] = StoragePath(section[key]).name
    return tree


PATHS = (
    ("data", "path"),
    ("train", "run"),
    ("teachers", "det", "checkpoint"),
    ("teachers", "seg", "checkpoint"),
    ("teachers", "store"),
)
"""Settings that are paths."""


def _missing(trials: Mapping[str, Trial], wanted: Iterable[Trial], finished: Mapping[str, Result]) -> list[Trial]:
    """The trials to run, in order: wanted ones without a result, and what they need whose network is not there."""
    names = {trial.name for trial in wanted if trial.name not in finished}
    for trial in reversed(list(trials.values())):
        if trial.name in names:
            names |= {other for other in trial.needs if not _has_network(trials[other])}
    return [trial for trial in trials.values() if trial.name in names]


def _has_network(trial: Trial) -> bool:
    run = StoragePath(trial.config.train.run)
    if not (run / "result.json").exists():
        return False
    try:
        find_checkpoint(run)
    except UserError:
        return False
    return True


def _waves(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials in groups, each of which needs only those before it."""
    left, waves = list(trials), []
    while left:
        names = {trial.name for trial in left}
        wave = [trial for trial in left if not names & set(trial.needs)]
        waves.append(wave)
        left = [trial for trial in left if trial not in wave]
    return waves


def _room(study: Study, trials: Sequence[Trial]) -> int:
    """Trials at a time: as many as the cores, and the GPUs, have room for."""
    if study.parallel is not None:
        return study.parallel
    return max(1, min(_fits(trial.config) for trial in trials))


def _fits(config: Config) -> int:
    """How many such trainings find a core for every thread of their workers."""
    return cluster_cores() // (config.train.most_workers * max(config.train.threads, round(config.train.resources.cpu)))


def _run_wave(study: Study, trials: Sequence[Trial], room: int) -> list[str | None]:
    """Run trials that do not need one another; of each, why it failed, or None."""
    if not trials:
        return []
    by_name = {trial.name: trial for trial in trials}

    def run(settings: dict[str, str]) -> dict[str, float]:
        config = by_name[settings["trial"]].config
        if config.teachers.placement == "stored" and config.distilled():
            precompute(config, study.stored_views)
        return train(config)["final"]

    tuner = tune.Tuner(
        # It only waits for the workers, which have their own share.
        tune.with_resources(run, {"cpu": 0.01}),
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(max_concurrent_trials=room),
        run_config=tune.RunConfig(
            name="tune", storage_path=StoragePath(study.runs).uri, verbose=0, log_to_file=False, callbacks=[]
        ),
    )
    with follow([trial.config for trial in trials]):
        outcomes = {outcome.config["trial"]: outcome.error for outcome in tuner.fit()}
    return [_reason(outcomes[name]) for name in by_name]


def _reason(error: BaseException | None) -> str | None:
    return None if error is None else first_line(root_cause(error))


def _keep(study: Study, trial: Trial) -> Result:
    """Write down what is worth keeping of a finished trial."""
    run = StoragePath(trial.config.train.run)
    outcome = json.loads((run / "result.json").read_text())
    parameters, gmacs = _network_cost(run, trial.config.data.eval_size)
    result = {
        "arm": trial.arm,
        "seed": trial.seed,
        "final": {name: value for name, value in outcome["final"].items() if isinstance(value, float)},
        "best_step": outcome["best"]["step"],
        "steps": outcome["steps"],
        "seconds": outcome["seconds"],
        "million_parameters": parameters,
        "gmacs": gmacs,
        "needs": list(trial.needs),
        "curve": [_evaluation(line) for line in read_metrics(run) if "score" in line],
        "config": portable(trial.config),
    }
    (StoragePath(study.results) / "trials" / f"{trial.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _evaluation(line: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation's metrics that are not of one class."""
    return {key: value for key, value in line.items() if key == "step" or re.fullmatch(r"(det|seg)/\w+", key)}


def _network_cost(run: StoragePath, size: int) -> tuple[float, float]:
    """Million parameters of a run's network, and 10^9 multiplications of an image's forward pass."""
    network, _ = load_network(run)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    return count_parameters(network) / 1e6, counter.get_total_flops() / 2e9
