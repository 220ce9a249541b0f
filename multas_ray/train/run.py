"""The driver of a training run: checks everything first, then lets Ray Train do the work and writes the result."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray
from ray.train import DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError

from multas_ray.config import Config, Task, distilled
from multas_ray.config_file import load_config
from multas_ray.data.index import Index, read_index
from multas_ray.data.plan import EvaluationPlan, Plan, Replay, lay_plan
from multas_ray.data.schema import DatasetInfo, TaskMask, read_info
from multas_ray.data.stream import stream, stream_options
from multas_ray.errors import UserError
from multas_ray.job import cluster_cores, root_cause, start_ray
from multas_ray.model.checkpoint import find_checkpoint, newest_checkpoint, read_meta, start_step
from multas_ray.model.network import MultiTaskNet
from multas_ray.report.html import run_report
from multas_ray.teacher.pool import start_pool
from multas_ray.teacher.store import StoreReader, check_store, describe_store, missing_files
from multas_ray.teacher.teacher import TeacherSpec, teacher_specs
from multas_ray.train.loop import train_worker
from multas_ray.train.step import distilled_rows
from multas_ray.train.tracking import read_metrics

RESULT = "result.json"


def train(config: Config) -> dict[str, Any]:
    """Train as configured, or go on with what the run folder holds; a finished run is not run again.

    Returns:
        What `result.json` holds: final and best metrics, steps, seconds, checkpoint.

    Raises:
        UserError: configuration, data, teachers or run folder cannot be used.
        ray.train.TrainingFailedError: the workers failed more often than allowed.
    """
    config = config.absolute()
    run = Path(config.train.run)
    info = read_info(config.data.path)
    specs = check_networks(config, info)
    plan = plan_run(config, specs)
    validation = EvaluationPlan(
        read_index(config.data.path, config.data.val), config.evaluate.batch_size, config.data.eval_size
    )
    for task in config.model.tasks:
        if not len(validation.index.rows([task, "both"])):
            raise UserError(f"data.val: split '{config.data.val}' has no row annotated for {task}, which is trained")
    finished = prepare_folder(run, config)
    if finished is not None:
        return finished

    began = perf_counter()
    start_ray(_cpus_needed(config))
    for task in specs:
        whole = getattr(config.distill, task).needs_dense()
        if config.distill.targets == "packed" and whole:
            print(f"distill.targets: {task} stays dense, which distill.{task}.{whole[0]} needs", flush=True)
    pooled = specs and config.teachers.placement == "pool"
    settings = {
        "config": config.model_dump(mode="json"),
        "det_classes": info.det_classes,
        "seg_classes": info.seg_classes,
        "steps_per_epoch": plan.steps_per_epoch,
        "teachers": specs,
        "pool": start_pool(config.teachers, specs) if pooled else None,
    }
    outcome = _fit(_trainer(config, settings, plan, validation), config.train.max_failures)
    return conclude(run, outcome, perf_counter() - began)


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
        if annotated & tasks or any(_distils(config, task, task in annotated) for task in config.distilled())
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


def prepare_folder(run: Path, config: Config) -> dict[str, Any] | None:
    """Make the run folder, or check that what it holds can go on; the result if the run is finished.

    Raises:
        UserError: the folder holds another run, or holds one and `train.resume` is false.
    """
    if (run / "config.yaml").exists():
        if not config.train.resume and newest_checkpoint(run) is not None:
            raise UserError(f"train.run: {run} holds a run, and train.resume is false; choose another folder")
        before = load_config(run / "config.yaml")
        changed = _first_difference(config, before)
        if changed is not None:
            raise UserError(f"train.run: {run} holds a run with another {changed}; choose another folder")
        if (run / RESULT).exists():
            result = json.loads((run / RESULT).read_text())
            if result["steps"] >= config.train.steps:
                return result
        newest = newest_checkpoint(run)
        if newest is not None and read_meta(newest).step > config.train.steps:
            done = read_meta(newest).step
            raise UserError(f"train.steps: {config.train.steps}, but {run} has been trained for {done} steps already")
    run.mkdir(parents=True, exist_ok=True)
    _write(run / "config.yaml", config.to_yaml())
    return None


MAY_CHANGE: dict[str, Any] = {
    "data": {"workers", "cpus_per_task"},
    "teachers": {"pool", "replicas", "resources", "prefetch", "threads"},
    "train": {
        *("run", "steps", "workers", "threads", "resources", "max_failures", "resume"),
        *("log_every_steps", "checkpoint_every_steps"),
    },
    "evaluate": True,
    "tracking": True,
}
"""What a run may be continued with: nothing of it changes what a step computes, or on which rows."""


def _first_difference(config: Config, before: Config) -> str | None:
    """Dotted path of the first setting that two configurations of one run must share and do not."""
    mine, theirs = (_leaves(c.model_dump(mode="json", exclude=MAY_CHANGE)) for c in (config, before))
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


def _write(file: Path, text: str) -> None:
    """Replace a file at once: whoever reads it finds the old text or the new one."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text)
    temporary.replace(file)


def _cpus_needed(config: Config) -> int:
    teachers = len(config.distilled()) * config.teachers.replicas if config.teachers.placement == "pool" else 0
    # Two more: data tasks of the training and the validation stream must always find room.
    return math.ceil(config.train.workers * config.train.resources.cpu + teachers * config.teachers.resources.cpu) + 2


def _trainer(
    config: Config, settings: dict[str, Any], plan: Plan, validation: EvaluationPlan
) -> Callable[[], TorchTrainer]:
    run = Path(config.train.run)
    workers = config.train.workers
    parallel = config.data.workers or max(1, cluster_cores() // 2)
    source = partial(stream, workers=workers, parallel=parallel, cpus_per_task=config.data.cpus_per_task)

    targets = None
    if plan.replay is not None and config.teachers.store is not None:
        targets = StoreReader(config.teachers.store, plan.index, partial(distilled_rows, config=config))

    # Ray Train calls these anew at every start of the worker group, so the stream begins at the newest checkpoint.
    def training_stream() -> ray.data.Dataset:
        return source(plan, start=start_step(run), augment=config.data.augment, targets=targets)

    def validation_stream() -> ray.data.Dataset:
        return source(validation)

    options = stream_options(max(config.data.sizes), workers, parallel)
    resources = config.train.resources

    def build() -> TorchTrainer:
        # Ray's record of an earlier attempt names checkpoints that `prune` has deleted since, which Ray refuses. Where
        # to go on is for `start_step` alone to say.
        (run / "checkpoints" / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
        return TorchTrainer(
            train_worker,
            train_loop_config=settings,
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=resources.gpu > 0,
                resources_per_worker={"CPU": resources.cpu, **({"GPU": resources.gpu} if resources.gpu else {})}
                | resources.custom,
            ),
            datasets={"train": training_stream, "val": validation_stream},
            dataset_config=DataConfig(execution_options=options, enable_shard_locality=False),
            run_config=RunConfig(
                name="checkpoints",
                storage_path=str(run),
                failure_config=FailureConfig(max_failures=config.train.max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[StopOnUserError()],
            ),
        )

    return build


def _fit(build: Callable[[], TorchTrainer], retries: int) -> dict[str, Any]:
    """Run to the end. Ray restarts workers; a controller that died is started again here."""
    for attempt in range(retries + 1):
        try:
            return build().fit().return_value
        except (ControllerError, ray.exceptions.ActorDiedError) as error:
            if attempt == retries or isinstance(root_cause(error), UserError):
                raise
            print(f"the training controller died ({type(error).__name__}): starting it again", flush=True)
    raise AssertionError("unreachable")


class StopOnUserError(UserCallback):
    """Ends a run whose workers met what no restart can change, such as a teacher that answers with NaN."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise a worker's `UserError` in the controller, which ends the run."""
        for error in worker_exceptions.values():
            cause = root_cause(error)
            if isinstance(cause, UserError):
                raise cause


def conclude(run: Path, outcome: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Write `result.json` and `report.html` of a finished run."""
    best = read_meta(find_checkpoint(str(run)))
    scored = [line for line in read_metrics(run) if "score" in line]
    top = max(scored, key=lambda line: line["score"])
    previous = json.loads((run / RESULT).read_text()) if (run / RESULT).exists() else {}
    result = {
        "final": outcome["final"],
        "best": top,
        "steps": outcome["steps"],
        "seconds": round(previous.get("seconds", 0.0) + seconds, 1),
        "checkpoint": f"checkpoints/step_{best.step:08d}",
    }
    _write(run / RESULT, json.dumps(result, indent=1) + "\n")
    run_report(run)
    return result
