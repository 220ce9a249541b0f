"""Label space of a run over several data sets: whose class is which, and which classes a data set does not list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multas_ray.config import Task
from multas_ray.errors import UserError, quoted
from multas_ray.tasks.segmentation.rows import BACKGROUND

NO_OBJECT = -1
"""Target of an object class that is background in the run: where its boxes are, there is nothing."""


@dataclass(frozen=True)
class ClassMap:
    """Classes of a data set for a task, by those of the run."""

    targets: tuple[int | None, ...]
    """Number in the run of each of the data set's classes; None for a class that is ignored; or `NO_OBJECT`."""
    count: int
    """Number C of the run's classes."""

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """Classes of the run that the data set does not list: nobody looked for them in any of its images."""
        return tuple(sorted(set(range(self.count)) - set(self.listed)))

    @property
    def empty(self) -> bool:
        """Whether the data set has none of the run's classes, so that its annotation says nothing."""
        return not self.listed

    @property
    def listed(self) -> tuple[int, ...]:
        """Classes of the run that the data set lists."""
        return tuple(sorted({target for target in self.targets if target is not None and target != NO_OBJECT}))

    def marks(self, numbers: np.ndarray) -> np.ndarray:
        """Return the unlabelled classes of a row.

        Where several classes of the data set are one of the run's, all of them must have been looked for.

        Args:
            numbers: (n,) numbers of the data set's classes that are unlabelled in the row.

        Returns:
            (m,) int32, ascending: numbers of the run's classes.
        """
        own = {self.targets[number] for number in numbers.tolist()} & set(self.listed)
        return np.array(sorted(own | set(self.unlabelled)), np.int32)


def join_classes(
    task: Task,
    sources: Mapping[str, Sequence[str]],
    maps: Mapping[str, Mapping[str, str | None]],
    chosen: Sequence[str] | None,
) -> list[str]:
    """Join the classes that several data sets have for a task.

    Args:
        task: task whose classes these are.
        sources: classes of each data set, in its order.
        maps: other names of some of these classes in the run, by data set; None for a class that is ignored.
        chosen: classes of the run; None for the union by name, in order of first appearance.

    Returns:
        Classes of the run; `background` comes first of the pixels' classes, and is no class of objects.

    Raises:
        UserError: `background` is chosen as a class of objects.
    """
    if task == "det" and BACKGROUND in (chosen or ()):
        raise UserError(f"data.det_classes: {BACKGROUND} is no class of objects; leave it out")
    if chosen is not None:
        return list(chosen)
    names = [maps[source].get(name, name) for source, own in sources.items() for name in own]
    found = list(dict.fromkeys(name for name in names if name is not None))
    if task == "det":
        return [name for name in found if name != BACKGROUND]
    return sorted(found, key=lambda name: name != BACKGROUND)


def class_map(
    task: Task, source: str, own: Sequence[str], renamed: Mapping[str, str | None], run: Sequence[str]
) -> ClassMap:
    """Map the classes of a data set to those of the run, by name.

    Args:
        task: task whose classes these are.
        source: name of the data set in the configuration.
        own: its classes, in its order.
        renamed: other names of some of them; None for a class that is ignored.
        run: classes of the run.

    Raises:
        UserError: a class is none of the run's.
    """
    targets: list[int | None] = []
    for name in own:
        target = renamed.get(name, name)
        if task == "det" and target == BACKGROUND:
            targets.append(NO_OBJECT)
            continue
        if target is not None and target not in run:
            raise UserError(
                f"data.sources.{source}: its {task} class {quoted(target)} is none of the run's; {source} has "
                f"{', '.join(own)}, data.{task}_classes are {', '.join(run)}; name its class there by "
                f"data.sources.{source}.classes, or null to ignore it"
            )
        targets.append(None if target is None else run.index(target))
    return ClassMap(tuple(targets), len(run))
