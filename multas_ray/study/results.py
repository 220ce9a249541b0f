"""Results of a study's trials: one small JSON file each, which stands for the trial when its run folder is gone."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from multas_ray.checkpoint.folder import find_checkpoint
from multas_ray.checkpoint.weights import load_network
from multas_ray.config import Config
from multas_ray.documents import read_model
from multas_ray.errors import UserError
from multas_ray.model.network import count_gmacs, count_parameters
from multas_ray.run_folder import Metrics, Number, read_metrics, read_result
from multas_ray.storage import StoragePath
from multas_ray.study.layout import Study, Trial, change_paths
from multas_ray.train.resume import first_difference


class TrialResult(BaseModel):
    """A file `trials/<name>.json` in a study's results."""

    arm: str
    seed: int
    final: Metrics
    """Metrics of the last evaluation, in percent."""
    steps: int
    seconds: Number
    million_parameters: Number
    gmacs: Number
    """10^9 multiplications of one image's forward pass."""
    needs: list[Annotated[str, Field(pattern=r"^.+-\d+$")]]
    """Names of the trials whose networks it used."""
    curve: list[Metrics]
    """Evaluations: step, and metrics over all classes."""
    config: Config
    """Configuration with paths cut to their last part, see `portable`."""


def result_file(study: Study, name: str) -> StoragePath:
    """Path of a trial's result."""
    return StoragePath(study.results) / "trials" / f"{name}.json"


def read_results(study: Study, trials: Mapping[str, Trial]) -> dict[str, TrialResult]:
    """Read the results that trials have, by name.

    Raises:
        UserError: a file holds no result, or one of another configuration.
    """
    results = {}
    for name, trial in trials.items():
        file = result_file(study, name)
        if not file.exists():
            continue
        try:
            result = read_model(file, TrialResult)
        except UserError as error:
            raise UserError(f"{error}; delete it, and what its run folder holds is kept anew") from None
        changed = _changed_setting(trial.config, result.config)
        if changed is not None:
            raise UserError(
                f"{file}: is of another {changed}; give the arm another name, or delete the result, its run folder "
                f"{trial.config.train.run} and those of its students"
            )
        results[name] = result
    return results


UNSCORED = {"every_steps", "pictures"}
"""Settings of the evaluation that do not change what a result holds."""


def _changed_setting(config: Config, before: Config) -> str | None:
    """Dotted path of a setting that a trial and its result must share and do not."""
    if before.train.steps != config.train.steps:
        return "train.steps"
    changed = first_difference(Config.model_validate(portable(config)), before)
    if changed is not None:
        return changed
    now, then = (each.evaluate.model_dump(exclude=UNSCORED) for each in (config, before))
    return next((f"evaluate.{key}" for key in now if now[key] != then[key]), None)


def portable(config: Config) -> dict[str, Any]:
    """A configuration's tree with paths cut to their last part: where things lie differs from machine to machine."""
    return change_paths(config.model_dump(mode="json"), lambda path: StoragePath(path).name)


def has_network(trial: Trial) -> bool:
    """Whether a trial's run folder holds its network, trained for all of its steps."""
    run = StoragePath(trial.config.train.run)
    try:
        result = read_result(run)
        if result is None or result["steps"] < trial.config.train.steps:
            return False
        find_checkpoint(run)
    except UserError:
        return False
    return True


def write_result(trial: Trial, file: StoragePath) -> None:
    """Write the result of a trial whose run is finished."""
    run = StoragePath(trial.config.train.run)
    outcome = read_result(run)
    assert outcome is not None
    parameters, gmacs = _network_cost(run, trial.config.data.eval_size)
    result = TrialResult(
        arm=trial.arm,
        seed=trial.seed,
        final={name: value for name, value in outcome["final"].items() if isinstance(value, float)},
        steps=outcome["steps"],
        seconds=outcome["seconds"],
        million_parameters=parameters,
        gmacs=gmacs,
        needs=list(trial.needs),
        curve=[_over_classes(line) for line in read_metrics(run) if "score" in line],
        config=Config.model_validate(portable(trial.config)),
    )
    file.write_text(json.dumps(result.model_dump(mode="json"), indent=1) + "\n")


def _over_classes(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The step of an evaluation, and its metrics over all classes."""
    return {name: value for name, value in evaluation.items() if re.fullmatch(r"step|(det|seg)/\w+", name)}


def _network_cost(run: StoragePath, size: int) -> tuple[float, float]:
    """Million parameters of a run's network, and 10^9 multiplications of an image's forward pass."""
    network, _ = load_network(run)
    return count_parameters(network) / 1e6, count_gmacs(network, size)
