"""Layout of a study: arms, each the common configuration with some changes, trained with several seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from multas_ray.config import FOREIGN, TASKS, Config, Task
from multas_ray.config_file import parse_config
from multas_ray.documents import read_model, read_yaml
from multas_ray.errors import UserError
from multas_ray.storage import Location, StoragePath

ARM_RUN = "arm:"
"""Prefix of a reference: `arm:NAME` in a configuration is the run folder of that arm with the same seed."""
REFERENCES = ("det", "seg", "mtl", "full", "kd")
"""Arms that others are compared with, where a study names none; it need not have them all."""
Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]
"""Name that is also part of a folder's name."""


class Study(BaseModel):
    """The YAML file of a study."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    """Group of the study's runs in W&B."""
    runs: str
    """Folder of the trials' run folders and of study.html, whose pictures show images of the data set."""
    results: str
    """Folder of what is worth keeping: trials/*.json, study.md, study.json, extras.json, plots."""
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    parallel: int | None = Field(None, ge=1)
    """Trials at a time; default: as many as the cluster has room for."""
    stored_views: Annotated[int, Field(ge=1)] | Literal["original"] = 8
    """Augmentations of each row in the stores of soft targets that arms with stored teachers make, or `original`
    images."""
    references: list[Name] = [*REFERENCES]
    """Arms that every other arm is compared with; each of them is compared with those before it."""
    class_groups: dict[str, dict[Task, Annotated[list[str], Field(min_length=1)]]] = {}
    """Groups of classes by names of your own, whose mean AP and IoU are compared beside those of all classes."""
    base: dict[str, dict[str, Any]]
    """The common configuration."""
    arms: dict[Name, dict[str, dict[str, Any]]] = Field(min_length=1)
    """Name -> what differs from the common configuration."""

    @model_validator(mode="after")
    def _references_are_arms(self) -> "Study":
        unknown = [name for name in self.references if name not in self.arms]
        if unknown and tuple(self.references) != REFERENCES:
            raise ValueError(f"references: {unknown[0]} is no arm of the study ({', '.join(self.arms)})")
        return self


@dataclass(frozen=True)
class Trial:
    """One arm with one seed."""

    arm: str
    seed: int
    config: Config
    needs: tuple[str, ...]
    """Names of the trials whose networks it uses."""

    @property
    def name(self) -> str:
        """Name of the trial's run folder and of its result."""
        return f"{self.arm}-{self.seed}"


def load_study(file: Location) -> Study:
    """Read a study's YAML file.

    Raises:
        UserError: one line that names the key, what was given and what is allowed.
    """
    return read_model(file, Study, read_yaml)


def lay_out(study: Study) -> dict[str, Trial]:
    """List all trials by name; those that others need come before them.

    Raises:
        UserError: an arm's configuration is wrong, or its teachers are no arm or need one another.
    """
    arms = _teachers_first(study)
    # Seed after seed: a study that is cut short has some seeds of all arms.
    trials = [_trial(study, arm, seed) for seed in study.seeds for arm in arms]
    return {trial.name: trial for trial in trials}


def _teachers_first(study: Study) -> list[str]:
    """The arms as they are written, but teachers before their students."""
    needs = {arm: list(_references(changes)) for arm, changes in study.arms.items()}
    for arm, others in needs.items():
        unknown = [other for other in others if other not in study.arms]
        if unknown:
            raise UserError(f"arms.{arm}: {ARM_RUN}{unknown[0]} is no arm of the study ({', '.join(study.arms)})")
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise UserError(f"arms: {' needs '.join(error.args[1])}") from None


def _trial(study: Study, arm: str, seed: int) -> Trial:
    run = _run_folder(study, arm, seed)
    tree = _merge(deepcopy(study.base), deepcopy(study.arms[arm]))
    tree = _resolve_references(tree, study, seed)
    tree.setdefault("train", {}).update(run=run.uri, seed=seed)
    if tree.get("teachers", {}).get("placement") == "stored":
        # Teachers of another seed have other targets.
        tree["teachers"].setdefault("store", (run / "targets").uri)
    tree["tracking"] = tree.get("tracking", {}) | {"group": study.name}
    # A trial's process may start in another folder, where relative paths mean something else.
    tree = change_paths(tree, lambda path: StoragePath(path).uri)
    try:
        config = parse_config(tree).absolute()
    except UserError as error:
        raise UserError(f"arms.{arm}: {error}") from None
    return Trial(arm, seed, config, tuple(f"{other}-{seed}" for other in _references(study.arms[arm])))


def _run_folder(study: Study, arm: str, seed: int) -> StoragePath:
    return StoragePath(study.runs) / f"{arm}-{seed}"


def _references(tree: Any) -> Iterator[str]:
    """Names of the arms that a configuration's tree refers to."""
    if isinstance(tree, str) and tree.startswith(ARM_RUN):
        yield tree.removeprefix(ARM_RUN)
    elif isinstance(tree, Mapping | list):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _references(value)


def _resolve_references(tree: Any, study: Study, seed: int) -> Any:
    """A copy of a configuration's tree with run folders in the place of references."""
    if isinstance(tree, Mapping):
        return {key: _resolve_references(value, study, seed) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_resolve_references(value, study, seed) for value in tree]
    if isinstance(tree, str) and tree.startswith(ARM_RUN):
        return _run_folder(study, tree.removeprefix(ARM_RUN), seed).uri
    return tree


PATHS = (("data", "path"), ("train", "run"), ("teachers", "store"))
"""Settings that are paths, but for those of `data.sources` and the teachers."""


def change_paths(tree: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Change every path in a configuration's tree, in place; not the sources of foreign teachers (`hf:owner/name`).

    Returns:
        The tree.
    """
    # The configuration's own checks name what is no section or no path.
    places = [(_section(tree, sections), key) for *sections, key in PATHS]
    places += [(source, "path") for source in (_section(tree, ("data", "sources")) or {}).values()]
    for task in TASKS:
        teachers = (_section(tree, ("teachers",)) or {}).get(task)
        for teacher in teachers if isinstance(teachers, list) else [teachers]:
            places += [(teacher, key) for key in ("source", "checkpoint")]
    for section, key in places:
        if not isinstance(section, dict):
            continue
        value = section.get(key)
        if isinstance(value, str) and not FOREIGN.match(value):
            section[key] = change(value)
    return tree


def _section(tree: dict[str, Any], names: Sequence[str]) -> dict[str, Any] | None:
    """Return a section of a tree; None where it is none."""
    section: Any = tree
    for name in names:
        section = section.get(name) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else None


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay changes over a tree, section by section, in place."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value
    return tree
