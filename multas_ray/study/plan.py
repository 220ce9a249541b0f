"""What a study consists of: arms, each the common configuration with some changes, trained with several seeds.

And what a search for a good configuration does.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from multas_ray.config import Config
from multas_ray.config_file import parse_config
from multas_ray.documents import read_model, read_yaml
from multas_ray.errors import UserError
from multas_ray.storage import Location, StoragePath

ARM_RUN = "arm:"
"""`arm:NAME` in a configuration stands for the run folder of that arm with the same seed."""
Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]
"""Of what a folder is named after."""


class Study(BaseModel):
    """The YAML file of a study."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    """Group of its runs in W&B."""
    runs: str
    """Folder of the trials' run folders and of study.html, whose pictures show images of the data set."""
    results: str
    """Folder of what is worth keeping: trials/*.json, study.md, study.json, extras.json, plots."""
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    parallel: int | None = Field(None, ge=1)
    """Trials at a time; default: as many as the cluster has room for."""
    stored_views: int = Field(8, ge=1)
    """Augmentations of each row in the stores of soft targets that arms with stored teachers make."""
    base: dict[str, dict[str, Any]]
    """The common configuration."""
    arms: dict[Name, dict[str, dict[str, Any]]] = Field(min_length=1)
    """Name -> what differs from the common configuration."""


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
        """Of its run folder and of its result."""
        return f"{self.arm}-{self.seed}"


def load_study(file: Location) -> Study:
    """Read a study's YAML file.

    Raises:
        UserError: one line that names the key, what was given and what is allowed.
    """
    return read_model(file, Study, read_yaml)


def lay_out(study: Study) -> dict[str, Trial]:
    """All trials by name; those that others need come before them.

    Raises:
        UserError: an arm's configuration is wrong, or its teachers are no arm or need one another.
    """
    trials: dict[str, Trial] = {}
    arms = _in_order(study)
    # Seed after seed: a study that is cut short has some seeds of all arms.
    for seed in study.seeds:
        for arm in arms:
            tree = _merge(deepcopy(study.base), deepcopy(study.arms[arm]))
            tree = _with_runs(tree, study, seed)
            name = f"{arm}-{seed}"
            tree.setdefault("train", {}).update(run=run_folder(study, name).uri, seed=seed)
            if tree.get("teachers", {}).get("placement") == "stored":
                # Teachers of another seed have other targets.
                tree["teachers"].setdefault("store", (run_folder(study, name) / "targets").uri)
            tree["tracking"] = tree.get("tracking", {}) | {"group": study.name}
            # Trials start in folders of their own, where other paths mean something else.
            tree = change_paths(tree, lambda path: StoragePath(path).uri)
            try:
                config = parse_config(tree).absolute()
            except UserError as error:
                raise UserError(f"arms.{arm}: {error}") from None
            trials[name] = Trial(arm, seed, config, tuple(f"{other}-{seed}" for other in _references(study.arms[arm])))
    return trials


def run_folder(study: Study, name: str) -> StoragePath:
    """Where a trial's run is."""
    return StoragePath(study.runs) / name


def _in_order(study: Study) -> list[str]:
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


def _references(tree: Any) -> Iterator[str]:
    if isinstance(tree, str) and tree.startswith(ARM_RUN):
        yield tree.removeprefix(ARM_RUN)
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _references(value)


def _with_runs(tree: Any, study: Study, seed: int) -> Any:
    if isinstance(tree, Mapping):
        return {key: _with_runs(value, study, seed) for key, value in tree.items()}
    if isinstance(tree, str) and tree.startswith(ARM_RUN):
        return run_folder(study, f"{tree.removeprefix(ARM_RUN)}-{seed}").uri
    return tree


def change_paths(tree: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A configuration's tree itself, each path in it changed."""
    for *sections, key in PATHS:
        section: Any = tree
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        # What is no section or no path, the configuration's own checks name.
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = change(section[key])
    return tree


PATHS = (
    ("data", "path"),
    ("train", "run"),
    ("teachers", "det", "checkpoint"),
    ("teachers", "seg", "checkpoint"),
    ("teachers", "store"),
)
"""Settings that are paths."""


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the changes over the tree, section by section."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value
    return tree


Scheduler = Literal["asha", "median", "none"]
METRICS = ("score", "det/AP", "det/AP50", "seg/mIoU")


@dataclass(frozen=True)
class Sweep:
    """What is searched, and how."""

    tree: dict[str, Any]
    """The common configuration."""
    search: Sequence[str]
    """See `parse_search`."""
    out: str
    """Folder of the trials' runs and of the outcome."""
    trials: int
    scheduler: Scheduler = "asha"
    metric: str = "score"
    """More is better."""
    parallel: int | None = None
    """Trials at a time; default: as many as the cluster has room for."""
    seed: int = 0
    """Of the draws."""

    def config(self, drawn: Mapping[str, Any], run: str) -> Config:
        """The configuration of a trial."""
        tree = deepcopy(self.tree)
        overrides = [f"{path}={json.dumps(value)}" for path, value in drawn.items()]
        return parse_config(tree, [*overrides, f"train.run={json.dumps(run)}"])
