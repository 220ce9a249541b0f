"""Driver of a training run: checks everything first, then lets Ray Train do the work and writes the result."""

import contextlib
import json
import traceback
from collections.abc import Callable, Collection, Mapping
from functools import partial
from time import time
from typing import Any

import numpy as np
import ray
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from multas_ray.checkpoint.folder import find_checkpoint, newest_checkpoint, read_meta
from multas_ray.config import TASK_MASKS, Config, Task
from multas_ray.data.index import Index
from multas_ray.data.plan import EvaluationPlan, Plan, Replay, lay_plan
from multas_ray.data.schema import DatasetInfo, tasks_of
from multas_ray.data.sources import read_sources
from multas_ray.data.stream import Addition, PlannedData, PlannedStream
from multas_ray.errors import RunError, UserError, first_line, root_cause
from multas_ray.model.backbones import TIMM
from multas_ray.model.network import MultiTaskNet
from multas_ray.placement import asks, check_placement, cpus_needed
from multas_ray.ray_setup import data_tasks, start_ray, warn_if_passing
from multas_ray.report.overlays import choose_samples
from multas_ray.report.run_report import run_report
from multas_ray.resolve import resolve_precision
from multas_ray.run_folder import RESULT, checkpoint_name, read_metrics
from multas_ray.storage import StoragePath
from multas_ray.tasks.bombo.rows import WeakAnnotations, weak_tasks
from multas_ray.teacher.ensemble import TaskTeacher
from multas_ray.teacher.pool import start_pool
from multas_ray.teacher.selection import SelectDistilled, rows_to_distil
from multas_ray.teacher.specs import teacher_specs
from multas_ray.teacher.store import StoreReader, check_store, describe_store, missing_files, stored_views
from multas_ray.train.loop import WorkerJob, WorkerResult, train_worker
from multas_ray.train.provenance import describe_attempt, record_attempt
from multas_ray.train.resume import prepare_folder, start_step, trained_precision
from multas_ray.train.tracking import Progress, log_error


def train(config: Config) -> dict[str, Any]:
    """Train as configured, or resume the run in the run folder; a finished run is not run again.

    Returns:
        Content of `result.json`, see `run_folder.Result`.

    Raises:
        UserError: configuration, data, teachers or run folder cannot be used.
        ray.train.TrainingFailedError: the workers failed more often than allowed.
    """
    config = config.absolute()
    run = StoragePath(config.train.run)
    sources = read_sources(config.data)
    info = sources.info
    check_student(config, info)
    _name_licence(config)
    precise = resolve_precision(config, trained_precision(run, config))
    specs = teacher_specs(precise, info)
    # The run folder has the precision as the user wrote it, `auto` too, and the teachers that were found.
    written, config = (resolve_networks(each, specs) for each in (config, precise))
    plan = plan_run(config, specs)
    validation = EvaluationPlan(sources.index("val"), config.evaluate.batch_size, config.data.eval_size)
    for task in config.model.tasks:
        if not len(validation.index.rows([task, "both"])):
            raise UserError(f"data.val: {sources.splits('val')} has no row annotated for {task}, which is trained")
    finished = prepare_folder(run, written)
    if finished is not None:
        return finished
    warn_if_passing("train.run", config.train.run)

    newest, _ = newest_checkpoint(run)
    before = None if newest is None else read_meta(newest)
    start = 0 if before is None else before.step
    # Wall clock, which workers on other nodes read too.
    began = time() - (0 if before is None else before.seconds)
    attempt = describe_attempt(start, {"train": plan.index, "val": validation.index}, specs, config.train.precision)
    if start:
        print(f"{run}: goes on from step {start}", flush=True)
    progress = Progress(run)
    progress.starting("Ray")
    start_ray(cpus_needed(config))
    check_placement(asks(config))
    record_attempt(run, attempt)
    for task in specs:
        dense = config.distill.of(task).needs_dense()
        if config.distill.targets == "packed" and dense:
            print(f"distill.targets: {task} stays dense, which distill.{task}.{dense[0]} needs", flush=True)
    pooled = specs and config.teachers.placement == "pool"
    if pooled:
        progress.starting("teachers")
    job = WorkerJob(
        config=config,
        attempt=attempt,
        began=began,
        classes=info.classes,
        steps_per_epoch=plan.steps_per_epoch,
        sources=tuple(origin.name for origin in validation.index.origins if origin.name),
        samples=choose_samples(validation.index, config.model.tasks, config.evaluate.pictures),
        teachers=specs,
        pool=start_pool(config.teachers, specs) if pooled else None,
    )
    progress.starting("workers")
    outcome = _fit(_trainer(job, info, plan, validation), config.train.max_failures)
    return conclude(run, outcome, time() - began)


def plan_run(config: Config, specs: Mapping[Task, TaskTeacher]) -> Plan:
    """Lay the plan of the configured run, over the rows that its losses can use.

    Args:
        config: configuration of the run.
        specs: teacher of each distilled task.

    Raises:
        UserError: no row is usable, or the store of soft targets does not fit or is incomplete.
    """
    index = read_sources(config.data).index("train")
    return lay_plan(
        index,
        usable=[mask for mask in TASK_MASKS if _is_usable(config, tasks_of(mask))],
        mixing=None if config.data.mixing == "natural" else config.data.mixing,
        batch_size=config.train.batch_size,
        steps=config.train.steps,
        seed=config.train.seed,
        sizes=config.data.sizes,
        window=config.data.shuffle_window,
        multi_scale_until=config.data.multi_scale_until,
        replay=_stored_views(config, specs, index),
    )


def _stored_views(config: Config, specs: Mapping[Task, TaskTeacher], index: Index) -> Replay | None:
    """Return the augmentations of the store of soft targets; None without a store."""
    path = config.teachers.store
    if config.teachers.placement != "stored" or path is None:
        return None
    store = check_store(path, describe_store(config, specs, index, stored_views(path)))
    missing = len(missing_files(path, index, store))
    if missing:
        raise UserError(f"teachers.store {path}: {missing} files are missing; run jobs/precompute.py again")
    return store.replay()


def _is_usable(config: Config, annotated: Collection[Task]) -> bool:
    """Return whether some loss can use rows that are annotated for these tasks."""
    supervised = any(task in annotated for task in config.model.tasks)
    distilled = any(
        rows_to_distil(config.distill.of(task).on, np.array([task in annotated]), np.zeros(1, bool)).all()
        for task in config.distilled_tasks()
    )
    return supervised or distilled or bool(annotated and weak_tasks(config))


def check_student(config: Config, info: DatasetInfo) -> None:
    """Check that the network can be built, before anything starts.

    Raises:
        UserError: there is no such network, or its weak annotation cannot be made from these classes.
    """
    MultiTaskNet(config.model, info.classes)
    WeakAnnotations(config, info)


def _name_licence(config: Config) -> None:
    """Print the licence of pretrained weights that ask for more than the code does."""
    if not config.model.pretrained or not config.model.backbone.startswith(TIMM):
        return
    # Imported here: an optional package.
    from multas_ray.model.timm_backbones import weights_licence

    licence = weights_licence(config.model.backbone)
    if licence is not None and config.model.weights is None:
        print(f"model.backbone: the weights of {config.model.backbone} are under {licence}, not under this project's")


def resolve_networks(config: Config, specs: Mapping[Task, TaskTeacher]) -> Config:
    """Return the configuration with the settings that follow from the teachers.

    These are their sources, which all actors must find, also those that start in another folder, and the width of the
    student's adapters.
    """
    teachers: dict[str, Any] = {}
    for task, spec in specs.items():
        found = [
            each.model_copy(update={"source": member.description.source})
            for each, member in zip(config.teachers.of(task), spec.members, strict=True)
        ]
        teachers[task] = found if isinstance(getattr(config.teachers, task), list) else found[0]
    features = [spec.members[0].description.feature_width for spec in specs.values() if spec.terms.features]
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"adapter": features[0] if features else None}),
            "teachers": config.teachers.model_copy(update=teachers),
        }
    )


def _trainer(job: WorkerJob, info: DatasetInfo, plan: Plan, validation: EvaluationPlan) -> Callable[[], TorchTrainer]:
    """Return a function that makes the trainer of Ray Train: one serves for a single start of the controller."""
    config = job.config
    run = StoragePath(config.train.run)
    parallel = config.data.workers or data_tasks()
    known = {task: spec.known for task, spec in job.teachers.items()}
    additions: list[Addition] = [SelectDistilled(config, info.classes, known)]
    if config.teachers.placement == "stored" and config.teachers.store is not None:
        additions.append(StoreReader(config.teachers.store, plan.index))
    if weak_tasks(config):
        additions.append(WeakAnnotations(config, info))
    streams = {
        "train": PlannedStream(plan, partial(start_step, run), config.data.augment, additions),
        "val": PlannedStream(validation),
    }
    workers, resources = config.train.workers, config.train.resources

    def build() -> TorchTrainer:
        return TorchTrainer(
            partial(train_worker, job),
            torch_config=TorchConfig(timeout_s=config.train.timeout_s),
            scaling_config=ScalingConfig(
                num_workers=(workers[0], workers[1]) if isinstance(workers, list) else workers,
                use_gpu=resources.gpu > 0,
                resources_per_worker={"CPU": resources.cpu, **({"GPU": resources.gpu} if resources.gpu else {})}
                | resources.custom,
                label_selector=resources.labels or None,
            ),
            # Ray Train passes them on to `PlannedData` unchanged.
            datasets=streams,
            dataset_config=PlannedData(parallel, config.data.resources),
            run_config=RunConfig(
                name="ray",
                storage_path=run.path,
                storage_filesystem=run.filesystem,
                failure_config=FailureConfig(max_failures=config.train.max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[ReportAndFailFast(run)],
            ),
        )

    return build


def _fit(build: Callable[[], TorchTrainer], retries: int) -> WorkerResult:
    """Run to the end. Ray restarts workers; a controller that died is started again here."""
    for attempt in range(retries + 1):
        try:
            result: WorkerResult = build().fit().return_value
            return result
        except (ControllerError, ray.exceptions.ActorDiedError) as error:
            if attempt == retries or isinstance(root_cause(error), NOT_RETRYABLE):
                raise
            print(f"the training controller died ({type(error).__name__}): starting it again", flush=True)
    raise AssertionError("unreachable")


NOT_RETRYABLE = (
    UserError,
    RunError,
    TypeError,
    AttributeError,
    NameError,
    LookupError,
    AssertionError,
    ArithmeticError,
)
"""Errors that would occur again after a restart: of the run's input, and mistakes in the program."""


class ReportAndFailFast(UserCallback):
    """Callback of Ray Train's controller: writes a report, logs failures, ends a run that a restart would not help."""

    def __init__(self, run: StoragePath) -> None:
        """Take the run folder."""
        self.run = run

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Write the report of the unfinished run after an evaluation."""
        # Best effort: a full disk is reported by the workers.
        with contextlib.suppress(OSError):
            run_report(self.run)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Log the failures of workers.

        Raises:
            Exception: a failure that would occur again, which ends the run.
        """
        final = None
        for rank, error in sorted(worker_exceptions.items()):
            cause = root_cause(error)
            headline = f"rank {rank}: {type(cause).__name__}: {first_line(cause)}"
            # A full disk must not hide the failure.
            with contextlib.suppress(OSError):
                log_error(self.run, headline, "".join(traceback.format_exception(cause)))
            if isinstance(cause, NOT_RETRYABLE) and not isinstance(final, UserError | RunError):
                final = cause
        if final is not None:
            raise final


def conclude(run: StoragePath, outcome: WorkerResult, seconds: float) -> dict[str, Any]:
    """Write `result.json` and `report.html` of a finished run.

    Args:
        run: run folder.
        outcome: result of the workers.
        seconds: wall time of all attempts; an interrupted one counts up to its last checkpoint.

    Returns:
        Content of `result.json`, see `run_folder.Result`.
    """
    best = read_meta(find_checkpoint(run))
    scored = [line for line in read_metrics(run) if "score" in line]
    top = max(scored, key=lambda line: line["score"], default={})
    result = {
        "final": outcome["final"],
        "best": top,
        "steps": outcome["steps"],
        "seconds": round(seconds, 1),
        "checkpoint": checkpoint_name(best.step),
    }
    (run / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    run_report(run)
    return result
