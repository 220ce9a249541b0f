"""Teachers of a configuration, found and described."""

import ray

from multas_ray.config import Config, Task, TeacherConfig
from multas_ray.data.schema import DatasetInfo
from multas_ray.errors import UserError, root_cause
from multas_ray.placement import cpus_needed
from multas_ray.ray_setup import start_ray
from multas_ray.teacher import loader_of
from multas_ray.teacher.ensemble import TaskTeacher, joint_spec
from multas_ray.teacher.teacher import Description, StudentTerms, TeacherSpec


def teacher_specs(config: Config, data: DatasetInfo) -> dict[Task, TaskTeacher]:
    """Find the configured teachers of the distilled tasks.

    Args:
        config: configuration of a run.
        data: data set, whose classes the teachers are mapped to.

    Returns:
        Teacher of each distilled task; empty where the network teaches itself.

    Raises:
        UserError: a teacher cannot be found, or does not fit its student.
    """
    if config.teachers.placement == "ema":
        return {}
    specs: dict[Task, TaskTeacher] = {}
    for task in config.distilled_tasks():
        members = []
        for settings in config.teachers.of(task):
            terms = StudentTerms(
                classes=tuple(data.classes[task]),
                anchor_base=config.model.anchor_base,
                levels=config.model.pyramid_levels,
                precision=settings.precision or config.train.precision,
                features=task == "det" and config.distill.det.features,
                packed=config.packed(task),
            )
            description = _described(settings, task, terms, config)
            members.append(TeacherSpec(task, description, terms, settings))
        specs[task] = joint_spec(members)
        _check_losses(config, specs[task])
    return specs


def _described(settings: TeacherConfig, task: Task, terms: StudentTerms, config: Config) -> Description:
    """Describe a teacher: here, or where it has its own environment, in a task on Ray that has that too."""
    environment = config.teachers.runtime_env
    if not environment:
        return _describe(settings, task, terms)
    # As large as the job will need it: it is started once.
    start_ray(cpus_needed(config))
    describe = ray.remote(num_cpus=0, runtime_env=environment, max_retries=0)(_describe)
    try:
        description: Description = ray.get(describe.remote(settings, task, terms))
        return description
    except ray.exceptions.RayError as error:
        cause = root_cause(error)
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"teachers.{task}.source {settings.source}: in teachers.runtime_env: {cause}") from None


def _describe(settings: TeacherConfig, task: Task, terms: StudentTerms) -> Description:
    return loader_of(settings.source).describe(settings, task, terms)


def _check_losses(config: Config, spec: TaskTeacher) -> None:
    """Refuse losses that need what a teacher does not have.

    Raises:
        UserError: a loss compares features or every anchor, and a teacher has none, or there are several.
    """
    distill = config.distill.of(spec.task)
    for name in distill.needs_dense() if spec.task == "det" else []:
        loss = f"distill.det.{name}"
        for member in spec.members:
            if not member.description.every_anchor:
                raise UserError(
                    f"{member.place}: it answers with boxes, which are matched to the student's anchors, and {loss} "
                    "compares every anchor alike; use distill.det.guided"
                )
        if len(spec.members) > 1 and spec.terms.features:
            raise UserError(f"{spec.place}: several teachers, and {loss} compares the features of one")


def require_teacher_specs(config: Config, data: DatasetInfo) -> dict[Task, TaskTeacher]:
    """Find the configured teachers for a job that is about teachers alone, see `teacher_specs`.

    Raises:
        UserError: no task is distilled, or a teacher cannot be found or does not fit.
    """
    require_teachers(config)
    return teacher_specs(config, data)


def require_teachers(config: Config) -> None:
    """Raise a UserError where no task is distilled from a teacher."""
    if config.teachers.placement == "ema" or not config.distilled_tasks():
        raise UserError("teachers: no teacher of a task that is distilled; set teachers.det or teachers.seg")
