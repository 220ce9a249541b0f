"""Data sets of a run, as the configuration names them: their joined label space, and an index over all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from multas_ray.config import TASKS, DataConfig, Task
from multas_ray.data.classes import ClassMap, class_map, join_classes
from multas_ray.data.index import Index, join_indexes, read_index
from multas_ray.data.schema import DatasetInfo, read_info
from multas_ray.errors import UserError, quoted
from multas_ray.tasks.segmentation.rows import IGNORE

Role = Literal["train", "val"]
ROLES: tuple[Role, ...] = ("train", "val")
"""What rows of a run are for."""


@dataclass(frozen=True)
class Sources:
    """Data sets of a run."""

    data: DataConfig
    info: DatasetInfo
    """Description of all together, with the classes of the run."""
    infos: Mapping[str, DatasetInfo]
    """Description of each by its name; the only one of `data.path` is named ""."""
    maps: Mapping[str, Mapping[Task, ClassMap]]
    """Classes of each by those of the run."""

    def index(self, role: Role) -> Index:
        """Read the index of the rows to train on, or to evaluate on.

        Raises:
            UserError: there is no such split, or one of its files cannot be read.
        """
        return self.joined(self.parts(role))

    def joined(self, parts: Mapping[str, Index]) -> Index:
        """Join the indexes of `parts`: rows of all data sets, in the classes of the run."""
        return parts[""] if self.data.path is not None else join_indexes(parts, self.maps, self.info.classes)

    def parts(self, role: Role) -> dict[str, Index]:
        """Read the index of the rows of each data set by itself, by name.

        Raises:
            UserError: there is no such split, or one of its files cannot be read.
        """
        if self.data.path is not None:
            return {"": read_index(self.data.path, getattr(self.data, role))}
        splits = {name: (source.path, getattr(source, role)) for name, source in self.data.sources.items()}
        return {name: read_index(path, split) for name, (path, split) in splits.items() if split is not None}

    def splits(self, role: Role) -> str:
        """Name the splits of a role, for people."""
        if self.data.path is not None:
            return f"split '{getattr(self.data, role)}'"
        named = {name: getattr(source, role) for name, source in self.data.sources.items()}
        return ", ".join(f"split '{split}' of {name}" for name, split in named.items() if split is not None)


def read_sources(data: DataConfig) -> Sources:
    """Read the descriptions of the configured data sets, and join their classes.

    Raises:
        UserError: a data set is not there, or its classes do not fit the run's.
    """
    if data.path is not None:
        info = read_info(data.path)
        return Sources(data, info, {"": info}, {"": {}})
    infos = {name: read_info(source.path) for name, source in data.sources.items()}
    renamed = {name: source.classes for name, source in data.sources.items()}
    for name, info in infos.items():
        known = list(dict.fromkeys([*info.det_classes, *info.seg_classes]))
        unknown = [old for old in renamed[name] if old not in known]
        if unknown:
            raise UserError(
                f"data.sources.{name}.classes: {quoted(unknown[0])} is no class of {data.sources[name].path}, "
                f"which has {', '.join(known)}"
            )
    joined: dict[Task, list[str]] = {}
    maps: dict[str, dict[Task, ClassMap]] = {name: {} for name in infos}
    for task in TASKS:
        own = {name: info.classes[task] for name, info in infos.items()}
        joined[task] = join_classes(task, own, renamed, data.chosen_classes(task))
        for name, classes in own.items():
            maps[name][task] = class_map(task, name, classes, renamed[name], joined[task])
    if len(joined["seg"]) > IGNORE:
        raise UserError(
            f"data.sources: {len(joined['seg'])} classes of pixels together, and masks hold {IGNORE}; choose some by "
            "data.seg_classes, or leave some out by `classes: {name: null}`"
        )
    for name in infos:
        if all(each.empty for each in maps[name].values()):
            raise UserError(
                f"data.sources.{name}: all its classes are ignored ({', '.join(infos[name].det_classes)}; "
                f"{', '.join(infos[name].seg_classes)}), so that it teaches nothing; leave it out"
            )
    info = DatasetInfo(name=" + ".join(infos), det_classes=joined["det"], seg_classes=joined["seg"])
    return Sources(data, info, infos, maps)
