"""Teachers of a configuration, found and described."""

from multas_ray.config import Config, Task
from multas_ray.data.schema import DatasetInfo
from multas_ray.errors import UserError
from multas_ray.teacher import loader_of
from multas_ray.teacher.teacher import StudentTerms, TeacherSpec


def teacher_specs(config: Config, data: DatasetInfo) -> dict[Task, TeacherSpec]:
    """Find the configured teachers of the distilled tasks.

    Args:
        config: configuration of a run.
        data: data set, whose classes the teachers must have.

    Returns:
        Teacher of each distilled task; empty where the network teaches itself.

    Raises:
        UserError: a teacher cannot be found, or does not fit its student.
    """
    if config.teachers.placement == "ema":
        return {}
    specs = {}
    for task in config.distilled_tasks():
        teacher = config.teachers.of(task)
        assert teacher is not None
        terms = StudentTerms(
            classes=tuple(data.classes[task]),
            anchor_base=config.model.anchor_base,
            levels=config.model.pyramid_levels,
            precision=config.train.precision,
            features=task == "det" and config.distill.det.features,
            packed=config.packed(task),
        )
        description = loader_of(teacher.checkpoint).describe(teacher.checkpoint, task, terms)
        specs[task] = TeacherSpec(task, description, terms)
    return specs


def require_teacher_specs(config: Config, data: DatasetInfo) -> dict[Task, TeacherSpec]:
    """Find the configured teachers for a job that is about teachers alone, see `teacher_specs`.

    Raises:
        UserError: no task is distilled, or a teacher cannot be found or does not fit.
    """
    specs = teacher_specs(config, data)
    if not specs:
        raise UserError("teachers: no teacher of a task that is distilled; set teachers.det or teachers.seg")
    return specs
