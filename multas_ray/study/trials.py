"""Runs a study's trials as Ray tasks: side by side where there is room, teachers first, each once.

A student's task takes its teachers' object references as arguments: Ray starts it when they are there, and fails it
with them. Ray Tune, which sweeps use, knows no trial that depends on another.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import ray

from multas_ray.config import Config
from multas_ray.console import follow
from multas_ray.errors import RunError, UserError, first_line, root_cause
from multas_ray.placement import cpus_needed
from multas_ray.ray_setup import cluster_cores, cluster_gpus, on_cluster, start_ray, warn_if_passing
from multas_ray.storage import StoragePath
from multas_ray.study.layout import Study, Trial, lay_out
from multas_ray.study.results import TrialResult, has_network, read_results, result_file, write_result
from multas_ray.teacher.precompute import precompute
from multas_ray.train.run import train


def run_study(study: Study, arms: Sequence[str] | None = None) -> dict[str, TrialResult]:
    """Run what is missing of a study.

    Args:
        study: its trials with a result are not run again, those that were cut short are resumed.
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
    failures = _run_trials(study, missing) if missing else {}
    if failures:
        name, reason = next(iter(failures.items()))
        raise RunError(f"{len(failures)} of {len(missing)} trials failed; {name}: {reason}")
    return read_results(study, trials)


def _missing(trials: Mapping[str, Trial], wanted: Iterable[Trial], finished: Mapping[str, TrialResult]) -> list[Trial]:
    """The trials to run, in order: wanted ones without a result, and what they need whose network is not there."""
    names = {trial.name for trial in wanted if trial.name not in finished}
    for trial in reversed(list(trials.values())):
        if trial.name in names:
            names |= {other for other in trial.needs if not has_network(trials[other])}
    return [trial for trial in trials.values() if trial.name in names]


def _run_trials(study: Study, trials: Sequence[Trial]) -> dict[str, str]:
    """Run trials, teachers before their students.

    Returns:
        The reason of each failure, by name.
    """
    room = study.parallel or min(trials_that_fit(trial.config) for trial in trials)
    start_ray(room * max(cpus_needed(trial.config) for trial in trials) + 1)
    # A task only waits for its workers, which have their own share. It has a process of its own, and no retries: Ray
    # would begin the next one while the workers of a process that has died still write into the run folder.
    task = ray.remote(num_cpus=0.01, max_retries=0, max_calls=1)(_run_trial)
    started: dict[str, Any] = {}
    running: list[Any] = []
    failures: dict[str, str] = {}
    with follow([trial.config for trial in trials]):
        for trial in trials:
            if len(running) == room:
                _, running = ray.wait(running)
            # A teacher that is not among these has its network already.
            teachers = [started[name] for name in trial.needs if name in started]
            started[trial.name] = task.remote(trial, result_file(study, trial.name).uri, study.stored_views, *teachers)
            running.append(started[trial.name])
        for trial in trials:
            try:
                ray.get(started[trial.name])
            except Exception as error:
                failed = [name for name in trial.needs if name in failures]
                failures[trial.name] = f"needs {failed[0]}, which failed" if failed else first_line(root_cause(error))
    return failures


def _run_trial(trial: Trial, file: str, stored_views: int | Literal["original"], *teachers: None) -> None:
    """Train, and write the result.

    Args:
        trial: is resumed where it was cut short.
        file: path of its result.
        stored_views: augmentations of each row in a store of soft targets, or `original` images.
        teachers: placeholders for the trials that must be done.
    """
    if trial.config.teachers.placement == "stored" and trial.config.distilled_tasks():
        precompute(trial.config, stored_views)
    train(trial.config)
    # A teacher that was trained again because its network was gone keeps its first result.
    if not StoragePath(file).exists():
        write_result(trial, StoragePath(file))


def trials_that_fit(config: Config) -> int:
    """Number of such trainings, at least one, that find a core for every thread of their workers, and their GPUs."""
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
