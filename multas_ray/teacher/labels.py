"""Classes of a teacher in the columns of its student, by their names."""

from collections.abc import Sequence

from multas_ray.config import Task, TeacherConfig
from multas_ray.errors import UserError
from multas_ray.tasks.segmentation.rows import BACKGROUND

Columns = list[int | None]
"""Column of each of a teacher's classes among those of its student; None for a class that teaches nothing. Several may
have one column."""


def place_classes(place: str, names: Sequence[str], settings: TeacherConfig, task: Task, run: Sequence[str]) -> Columns:
    """Find the columns of a teacher's classes.

    What the run has no class for is background to it, where it has one; else, as with `null`, it is left out.

    Args:
        place: name of the teacher in messages.
        names: classes of the teacher, in the order of its outputs.
        settings: settings of the teacher, with other names for its classes.
        task: task that it teaches.
        run: classes of the run.

    Raises:
        UserError: a class is renamed that the teacher does not have, or to one that the run does not have, or the two
            have no class in common.
    """
    for name, other in settings.classes.items():
        if name not in names:
            raise UserError(f"{place}: classes has '{name}', and its own are {_shown(names)}")
        if other is not None and other not in run:
            raise UserError(f"{place}: classes makes '{name}' a '{other}', and those of the run are {_shown(run)}")
    elsewhere = 0 if task == "seg" and run[0] == BACKGROUND else None

    def column(name: str) -> int | None:
        other = settings.classes.get(name, BACKGROUND if name == "__background__" else name)
        if other is None:
            return None
        return run.index(other) if other in run else elsewhere

    columns = [column(name) for name in names]
    if not set(known_classes(columns, run)) - {BACKGROUND}:
        raise UserError(
            f"{place}: its classes are {_shown(names)}; none of them is among those of the run, {_shown(run)}; "
            "`classes: {theirs: ours}` says which is which"
        )
    return columns


def known_classes(columns: Columns, run: Sequence[str]) -> tuple[str, ...]:
    """List the classes of the run that some column is of."""
    return tuple(name for place, name in enumerate(run) if place in columns)


SHOWN = 20
"""Number of classes that a message shows of a list: some teachers know thousands."""


def _shown(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
