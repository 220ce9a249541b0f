"""The driver of a training run: checks everything first, then lets Ray Train do the work and writes the result."""

import contextlib
import json
import math
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from time import time
from typing import Any

import numpy as np
import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError

from multas_ray.checkpoint.folder import find_checkpoint, newest_checkpoint, newest_written, read_meta
from multas_ray.config import Config, Task, distilled
from multas_ray.data.index import Index, read_index
from multas_ray.data.plan import EvaluationPlan, Plan, Replay, lay_plan
from multas_ray.data.schema import DatasetInfo, TaskMask, read_info
from multas_ray.data.stream import Addition, PlannedData, Source
from multas_ray.documents import read_model, read_yaml
from multas_ray.errors import RunError, UserError, first_line, root_cause
from multas_ray.model.network import MultiTaskNet
from multas_ray.placement import asks, check_placement
from multas_ray.ray_setup import data_tasks, start_ray, warn_if_passing
from multas_ray.report.overlays import choose_samples
from multas_ray.report.run_report import run_report
from multas_ray.resolve import resolve_precision
from multas_ray.run_folder import CONFIG, RESULT, read_attempts, read_metrics, read_result
from multas_ray.storage import StoragePath
from multas_ray.tasks.bombo.rows import WeakAnnotations, weak_tasks
from multas_ray.teacher.pool import start_pool
from multas_ray.teacher.store import StoreReader, check_store, describe_store, missing_files
from multas_ray.teacher.teacher import TeacherSpec, teacher_specs
from multas_ray.train.loop import train_worker
from multas_ray.train.provenance import describe_attempt, record_attempt
from multas_ray.train.resume import start_step
from multas_ray.train.step import distilled_rows
from multas_ray.train.tracking import Progress, discard, log_error


def train(config: Config) -> dict[str, Any]:
    """Train as configured, or go on with what the run folder holds; a finished run is not run again.

    Returns:
        What `result.json` holds: final and best metrics, steps, seconds, checkpoint.

    Raises:
        UserError: configuration, data, teachers or run folder cannot be used.
        ray.train.TrainingFailedError: the workers failed more often than allowed.
    """
    asked = config = config.absolute()
    run = StoragePath(config.train.run)
    info = read_info(config.data.path)
    config = resolve_precision(config, kept_precision(run, config))
    specs = check_networks(config, info)
    plan = plan_run(config, specs)
    validation = EvaluationPlan(
        read_index(config.data.path, config.data.val), config.evaluate.batch_size, config.data.eval_size
    )
    for task in config.model.tasks:
        if not len(validation.index.rows([task, "both"])):
            raise UserError(f"data.val: split '{config.data.val}' has no row annotated for {task}, which is trained")
    finished = prepare_folder(run, asked)
    if finished is not None:
        return finished
    warn_if_passing("train.run", config.train.run)

    newest, _ = newest_checkpoint(run)
    before = None if newest is None else read_meta(newest)
    start = 0 if before is None else before.step
    # The wall clock, as workers on other nodes read it too.
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
        whole = getattr(config.distill, task).needs_dense()
        if config.distill.targets == "packed" and whole:
            print(f"distill.targets: {task} stays dense, which distill.{task}.{whole[0]} needs", flush=True)
    pooled = specs and config.teachers.placement == "pool"
    if pooled:
        progress.starting("teachers")
    settings = {
        "config": config.model_dump(mode="json"),
        "attempt": attempt,
        "began": began,
        "det_classes": info.det_classes,
        "seg_classes": info.seg_classes,
        "steps_per_epoch": plan.steps_per_epoch,
        "samples": choose_samples(validation.index, config.model.tasks, config.evaluate.pictures),
        "teachers": specs,
        "pool": start_pool(config.teachers, specs) if pooled else None,
    }
    progress.starting("workers")
    outcome = _fit(_trainer(config, info, settings, plan, validation), config.train.max_failures)
    return conclude(run, outcome, time() - began)


def plan_run(config: Config, specs: Mapping[Task, TeacherSpec]) -> Plan:
    """The plan of the configured run, over the rows that its losses can use.

    Raises:
        UserError: no row is of use, or the store of soft targets does not fit or is not whole.
    """
    index = read_index(config.data.path, config.data.train)
    has: dict[TaskMask, set[Task]] = {"none": set(), "det": {"det"}, "seg": {"seg"}, "both": {"det", "seg"}}
    tasks = set(config.model.tasks)
    usable = [
        mask
        for mask, annotated in has.items()
        if annotated & tasks
        or any(_distils(config, task, task in annotated) for task in config.distilled())
        or (annotated and weak_tasks(config))
    ]
    return lay_plan(
        index,
        usable=usable,
        mixing=None if config.data.mixing == "natural" else config.data.mixing,
        batch_size=config.train.batch_size,
        steps=config.train.steps,
        seed=config.train.seed,
        sizes=config.data.sizes,
        window=config.data.shuffle_window,
        multi_scale_until=config.data.multi_scale_until,
        replay=_stored_views(config, specs, index),
    )


def _stored_views(config: Config, specs: Mapping[Task, TeacherSpec], index: Index) -> Replay | None:
    path = config.teachers.store
    if config.teachers.placement != "stored" or path is None:
        return None
    store = check_store(path, describe_store(config, specs, index, views=1))
    missing = len(missing_files(path, index, store))
    if missing:
        raise UserError(f"teachers.store {path}: {missing} files are missing; run jobs/precompute.py again")
    return store.replay()


def _distils(config: Config, task: Task, annotated: bool) -> bool:
    return bool(distilled(getattr(config.distill, task).on, np.array([annotated]))[0])


def check_networks(config: Config, info: DatasetInfo) -> dict[Task, TeacherSpec]:
    """Refuse a network that cannot be built and teachers that do not fit, before anything is started.

    Fills in what follows from the teachers: their checkpoints' folders, and the width of the student's adapters.

    Returns:
        The teachers of the distilled tasks.

    Raises:
        UserError
    """
    config.model.adapter = None
    MultiTaskNet(config.model, info.det_classes, info.seg_classes)
    WeakAnnotations(config, info)
    specs = teacher_specs(config, info)
    for task, spec in specs.items():
        teacher = config.teachers.of(task)
        assert teacher is not None
        # Its actors may start in another folder, and must all load the same checkpoint.
        teacher.checkpoint = spec.checkpoint
        theirs = spec.load("cpu").network
        if task == "seg":
            continue
        own = config.model
        for name, value, expected in (
            ("anchor_base", theirs.config.anchor_base, own.anchor_base),
            ("levels", theirs.levels, own.levels),
        ):
            if value != expected:
                raise UserError(
                    f"teachers.det.checkpoint {teacher.checkpoint}: its model.{name} is {value}, the student's "
                    f"{expected}; detection is distilled anchor by anchor, so they must be equal"
                )
        if config.distill.det.features:
            own.adapter = theirs.config.width
    return specs


def prepare_folder(run: StoragePath, config: Config) -> dict[str, Any] | None:
    """Make the run folder, or check that what it holds can go on; the result if the run is finished. A run that died
    before its first checkpoint has nothing to go on from: where the settings are others now, it begins anew.

    Raises:
        UserError: the folder holds another run, holds one and `train.resume` is false, or cannot be written.
    """
    if (run / CONFIG).exists():
        newest, broken = newest_checkpoint(run)
        if not config.train.resume and newest is not None:
            raise UserError(f"train.run: {run} holds a run, and train.resume is false; choose another folder")
        before = read_model(run / CONFIG, Config, read_yaml)
        result = read_result(run)
        changed = first_difference(config, before)
        if changed is not None:
            if newest is not None or result is not None:
                raise UserError(f"train.run: {run} holds a run with another {changed}; choose another folder")
            if broken:
                raise UserError(
                    f"train.run: {run} holds a run with another {changed}, and none of its checkpoints is whole; "
                    "delete the folder, or choose another"
                )
            print(f"{run}: begins anew, with another {changed}; an earlier start left no checkpoint", flush=True)
            discard(run)
        if result is not None and result["steps"] >= config.train.steps:
            return result
        if newest is not None and read_meta(newest).step > config.train.steps:
            done = read_meta(newest).step
            raise UserError(f"train.steps: {config.train.steps}, but {run} has been trained for {done} steps already")
    try:
        (run / CONFIG).write_text(config.to_yaml())
    except OSError as error:
        raise UserError(f"train.run: {run} cannot be written ({error})") from None
    return None


def kept_precision(run: StoragePath, config: Config) -> str | None:
    """The precision of what a run folder has been trained for so far; None before its first checkpoint.

    Raises:
        UserError: another one is asked for.
    """
    # Not `newest_checkpoint`, which reads whole checkpoints to see that they are.
    if not newest_written(run):
        return None
    before = read_model(run / CONFIG, Config, read_yaml).train.precision
    kept = next((each.precision for each in reversed(read_attempts(run)) if each.precision), before)
    if config.train.precision not in ("auto", kept):
        raise UserError(
            f"train.precision: {config.train.precision}, but {run} has been trained in {kept}; choose another folder"
        )
    return kept


MAY_CHANGE: dict[str, Any] = {
    "data": {"workers", "resources"},
    "teachers": {"pool", "replicas", "resources", "prefetch", "threads"},
    "train": {
        *("run", "steps", "workers", "threads", "resources", "max_failures", "resume"),
        *("log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "max_bad_steps", "timeout_s"),
    },
    "evaluate": True,
    "tracking": True,
}
"""What a run may be continued with: nothing of it changes what a step computes, or on which rows."""


def first_difference(config: Config, before: Config) -> str | None:
    """Dotted path of the first setting that two configurations of one run must share and do not."""
    mine, theirs = (_leaves(c.model_dump(mode="json", exclude=MAY_CHANGE)) for c in (config, before))
    if "auto" in (mine["train.precision"], theirs["train.precision"]):
        # What it came to is compared by `kept_precision`.
        del mine["train.precision"], theirs["train.precision"]
    for leaves in (mine, theirs):
        # In a pool or inline, teachers answer alike.
        if leaves["teachers.placement"] == "inline":
            leaves["teachers.placement"] = "pool"
    return next((path for path in sorted(mine.keys() | theirs.keys()) if mine.get(path) != theirs.get(path)), None)


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        key: value for name, child in tree.items() for key, value in _leaves(child, f"{path}.{name}".strip(".")).items()
    }


def cpus_needed(config: Config) -> int:
    """Logical CPUs that a run asks of Ray."""
    teachers = len(config.distilled()) * config.teachers.replicas if config.teachers.placement == "pool" else 0
    asked = (
        config.train.most_workers * config.train.resources.cpu,
        teachers * config.teachers.resources.cpu,
        (config.data.workers or data_tasks()) * config.data.resources.cpu,
    )
    return math.ceil(sum(asked))


def _trainer(
    config: Config, info: DatasetInfo, settings: dict[str, Any], plan: Plan, validation: EvaluationPlan
) -> Callable[[], TorchTrainer]:
    run = StoragePath(config.train.run)
    parallel = config.data.workers or data_tasks()
    additions: list[Addition] = []
    if plan.replay is not None and config.teachers.store is not None:
        additions.append(StoreReader(config.teachers.store, plan.index, partial(distilled_rows, config=config)))
    if weak_tasks(config):
        additions.append(WeakAnnotations(config, info))
    sources = {
        "train": Source(plan, partial(start_step, run), config.data.augment, additions),
        "val": Source(validation),
    }
    workers, resources = config.train.workers, config.train.resources

    def build() -> TorchTrainer:
        return TorchTrainer(
            train_worker,
            train_loop_config=settings,
            torch_config=TorchConfig(timeout_s=config.train.timeout_s),
            scaling_config=ScalingConfig(
                num_workers=(workers[0], workers[1]) if isinstance(workers, list) else workers,
                use_gpu=resources.gpu > 0,
                resources_per_worker={"CPU": resources.cpu, **({"GPU": resources.gpu} if resources.gpu else {})}
                | resources.custom,
                label_selector=resources.labels or None,
            ),
            # Ray Train hands them on to `PlannedData` as they are.
            datasets=sources,
            dataset_config=PlannedData(parallel, config.data.resources),
            run_config=RunConfig(
                name="ray",
                storage_path=run.path,
                storage_filesystem=run.filesystem,
                failure_config=FailureConfig(max_failures=config.train.max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[Watch(run)],
            ),
        )

    return build


def _fit(build: Callable[[], TorchTrainer], retries: int) -> dict[str, Any]:
    """Run to the end. Ray restarts workers; a controller that died is started again here."""
    for attempt in range(retries + 1):
        try:
            return build().fit().return_value
        except (ControllerError, ray.exceptions.ActorDiedError) as error:
            if attempt == retries or isinstance(root_cause(error), FINAL):
                raise
            print(f"the training controller died ({type(error).__name__}): starting it again", flush=True)
    raise AssertionError("unreachable")


FINAL = (UserError, RunError, TypeError, AttributeError, NameError, LookupError, AssertionError, ArithmeticError)
"""What a restart cannot change: what was found to be so, and mistakes in the program."""


class Watch(UserCallback):
    """Reports on a run while it goes on, puts workers' failures on record, and ends what a restart would not help."""

    def __init__(self, run: StoragePath) -> None:
        self.run = run

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in Ray Train's controller after an evaluation: a report is there while the run goes on."""
        # What cannot be written now, the workers find out too, who can say it.
        with contextlib.suppress(OSError):
            run_report(self.run)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in Ray Train's controller, which ends the run if this raises."""
        final = None
        for rank, error in sorted(worker_exceptions.items()):
            cause = root_cause(error)
            headline = f"rank {rank}: {type(cause).__name__}: {first_line(cause)}"
            # A full disk must not hide what has happened.
            with contextlib.suppress(OSError):
                log_error(self.run, headline, "".join(traceback.format_exception(cause)))
            if isinstance(cause, FINAL) and not isinstance(final, UserError | RunError):
                final = cause
        if final is not None:
            raise final


def conclude(run: StoragePath, outcome: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Write `result.json` and `report.html` of a finished run.

    Args:
        run: its folder.
        outcome: what `train_worker` returns.
        seconds: wall time of all its attempts, up to an interrupted one's last checkpoint.
    """
    best = read_meta(find_checkpoint(run))
    scored = [line for line in read_metrics(run) if "score" in line]
    top = max(scored, key=lambda line: line["score"], default={})
    result = {
        "final": outcome["final"],
        "best": top,
        "steps": outcome["steps"],
        "seconds": round(seconds, 1),
        "checkpoint": f"checkpoints/step_{best.step:08d}",
    }
    (run / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    run_report(run)
    return result
