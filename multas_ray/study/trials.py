"""Running a study's trials with Ray Tune: side by side where there is room, teachers first, each once."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from time import sleep
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from ray import tune
from torch.utils.flop_counter import FlopCounterMode

from multas_ray.checkpoint.folder import find_checkpoint
from multas_ray.checkpoint.weights import load_network
from multas_ray.config import Config
from multas_ray.console import follow
from multas_ray.documents import read_model
from multas_ray.errors import RunError, UserError, first_line, root_cause
from multas_ray.model.network import count_parameters
from multas_ray.ray_setup import cluster_cores, cluster_gpus, on_cluster, start_ray, warn_if_passing
from multas_ray.run_folder import Metrics, Number, read_metrics, read_result
from multas_ray.storage import StoragePath
from multas_ray.study.plan import Study, Trial, change_paths, lay_out
from multas_ray.teacher.precompute import precompute
from multas_ray.train.resume import first_difference
from multas_ray.train.run import cpus_needed, train

Result = dict[str, Any]
"""What is kept of a finished trial, see `Kept`."""


class Kept(BaseModel):
    """A result in trials/*.json."""

    arm: str
    seed: int
    final: Metrics
    steps: int
    seconds: Number
    million_parameters: Number
    gmacs: Number
    needs: list[Annotated[str, Field(pattern=r"^.+-\d+$")]]
    """Names of other trials."""
    curve: list[Metrics]
    """Its evaluations."""
    config: Config


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
    for setting in ("runs", "results"):
        warn_if_passing(setting, StoragePath(getattr(study, setting)).uri)
    finished = read_results(study, trials)
    wanted = [trial for trial in trials.values() if arms is None or trial.arm in arms]
    missing = _missing(trials, wanted, finished)
    failures = {name: reason for name, reason in _run(study, missing).items() if reason is not None}
    if failures:
        name, reason = next(iter(failures.items()))
        raise RunError(f"{len(failures)} of {len(missing)} trials failed; {name}: {reason}")
    return read_results(study, trials)


def read_results(study: Study, trials: Mapping[str, Trial]) -> dict[str, Result]:
    """The kept results of a study's trials, by name.

    Raises:
        UserError: one is of another configuration, or is none.
    """
    found = {}
    for name, trial in trials.items():
        file = _result_file(study, name)
        if not file.exists():
            continue
        try:
            result = read_model(file, Kept)
        except UserError as error:
            raise UserError(f"{error}; delete it, and what its run folder holds is kept anew") from None
        kept = result.config
        changed = first_difference(Config.model_validate(portable(trial.config)), kept)
        if kept.train.steps != trial.config.train.steps:
            changed = "train.steps"
        mine, theirs = (config.evaluate.model_dump(exclude=UNSCORED) for config in (trial.config, kept))
        changed = changed or next((f"evaluate.{key}" for key in mine if mine[key] != theirs[key]), None)
        if changed is not None:
            raise UserError(
                f"{file}: is of another {changed}; give the arm another name, or delete the result, its run folder "
                f"{trial.config.train.run} and those of its students"
            )
        found[name] = result.model_dump(mode="json")
    return found


UNSCORED = {"every_steps", "pictures"}
"""Settings of the evaluation that do not change what a result holds."""


def _result_file(study: Study, name: str) -> StoragePath:
    return StoragePath(study.results) / "trials" / f"{name}.json"


def portable(config: Config) -> dict[str, Any]:
    """A configuration's tree with paths cut to their last part: where things are differs from machine to machine."""
    return change_paths(config.model_dump(mode="json"), lambda path: StoragePath(path).name)


def _missing(trials: Mapping[str, Trial], wanted: Iterable[Trial], finished: Mapping[str, Result]) -> list[Trial]:
    """The trials to run, in order: wanted ones without a result, and what they need whose network is not there."""
    names = {trial.name for trial in wanted if trial.name not in finished}
    for trial in reversed(list(trials.values())):
        if trial.name in names:
            names |= {other for other in trial.needs if not has_network(trials[other])}
    return [trial for trial in trials.values() if trial.name in names]


def has_network(trial: Trial) -> bool:
    """Whether a trial's run has all of its steps and is still there."""
    run = StoragePath(trial.config.train.run)
    try:
        result = read_result(run)
        if result is None or result["steps"] < trial.config.train.steps:
            return False
        find_checkpoint(run)
    except UserError:
        return False
    return True


def _room(study: Study, trials: Sequence[Trial]) -> int:
    """Trials at a time: as many as the cores, and the GPUs, have room for."""
    if study.parallel is not None:
        return study.parallel
    return min(trials_that_fit(trial.config) for trial in trials)


def trials_that_fit(config: Config) -> int:
    """How many such trainings find a core for every thread of their workers, and their GPUs; at least one."""
    train, teachers = config.train, config.teachers
    fit = cluster_cores() // (train.most_workers * max(train.threads, round(train.resources.cpu)))
    gpus = train.most_workers * train.resources.gpu
    if teachers.placement == "pool" and teachers.pool is None:
        gpus += len(config.distilled_tasks()) * teachers.replicas * teachers.resources.gpu
    if gpus:
        fit = min(fit, int(cluster_gpus() / gpus))
    if on_cluster():
        # Pools and data tasks too: else many trials' pools might leave none of their workers a CPU.
        fit = min(fit, cluster_cores() // cpus_needed(config))
    return max(1, fit)


def _run(study: Study, trials: Sequence[Trial]) -> dict[str, str | None]:
    """Run trials; of each, why it failed, or None."""
    if not trials:
        return {}
    by_name = {trial.name: trial for trial in trials}
    for trial in trials:
        (StoragePath(trial.config.train.run) / FAILED).delete()

    def run(settings: dict[str, str]) -> dict[str, float]:
        trial = by_name[settings["trial"]]
        for name in trial.needs:
            # Not among these, it is there already.
            if name in by_name:
                _wait_for(by_name[name])
        if trial.config.teachers.placement == "stored" and trial.config.distilled_tasks():
            precompute(trial.config, study.stored_views)
        return train(trial.config)["final"]

    room = _room(study, trials)
    start_ray(room * max(cpus_needed(trial.config) for trial in trials) + 1)
    tuner = tune.Tuner(
        # It only waits for the workers, which have their own share.
        tune.with_resources(run, {"cpu": 0.01}),
        param_space={"trial": tune.grid_search(list(by_name))},
        # They start in order, so that whatever a trial waits for has started before it.
        tune_config=tune.TuneConfig(max_concurrent_trials=room),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=StoragePath(study.runs).uri,
            verbose=0,
            log_to_file=False,
            callbacks=[_Records(study, by_name)],
        ),
    )
    with follow([trial.config for trial in trials]):
        outcomes = tuner.fit()
    return {outcome.config["trial"]: _reason(outcome.error) for outcome in outcomes}


FAILED = "failed"
"""A file in the run folder of a trial that failed, for those that wait for it."""
LOOK_EVERY_S = 2.0


class _Records(tune.Callback):
    """Keeps the results of trials as they finish, and puts those that failed on record."""

    def __init__(self, study: Study, trials: Mapping[str, Trial]) -> None:
        self.study, self.trials = study, dict(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune, in the process that runs the study."""
        mine = self.trials[trial.config["trial"]]
        # That of a teacher which is here only because its network was gone stays as it is.
        if not _result_file(self.study, mine.name).exists():
            _keep(self.study, mine)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune, in the process that runs the study."""
        (StoragePath(self.trials[trial.config["trial"]].config.train.run) / FAILED).write_text("")


def _wait_for(trial: Trial) -> None:
    while not has_network(trial):
        if (StoragePath(trial.config.train.run) / FAILED).exists():
            raise RunError(f"needs {trial.name}, which failed")
        sleep(LOOK_EVERY_S)


def _reason(error: BaseException | None) -> str | None:
    return None if error is None else first_line(root_cause(error))


def _keep(study: Study, trial: Trial) -> None:
    """Write down what is worth keeping of a finished trial."""
    run = StoragePath(trial.config.train.run)
    outcome = read_result(run)
    assert outcome is not None
    parameters, gmacs = _network_cost(run, trial.config.data.eval_size)
    result: Result = {
        "arm": trial.arm,
        "seed": trial.seed,
        "final": {name: value for name, value in outcome["final"].items() if isinstance(value, float)},
        "steps": outcome["steps"],
        "seconds": outcome["seconds"],
        "million_parameters": parameters,
        "gmacs": gmacs,
        "needs": list(trial.needs),
        "curve": [_evaluation(line) for line in read_metrics(run) if "score" in line],
        "config": portable(trial.config),
    }
    _result_file(study, trial.name).write_text(json.dumps(result, indent=1) + "\n")


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
