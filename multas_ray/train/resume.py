"""Resume of a run: whether its folder can be resumed, with which settings, and from which step. Free of PyTorch.

The process that lays the stream asks for the step and has no other use for PyTorch, whose import takes seconds.
"""

from typing import Any

from multas_ray.checkpoint.folder import newest_checkpoint, newest_written, read_meta
from multas_ray.config import Config
from multas_ray.documents import read_model, read_yaml
from multas_ray.errors import UserError
from multas_ray.run_folder import CONFIG, read_attempts, read_result
from multas_ray.storage import StoragePath
from multas_ray.train.tracking import discard, log_error


def start_step(run: StoragePath) -> int:
    """Return the step that a run resumes from: that of its newest whole checkpoint, else 0.

    Broken newer checkpoints are logged in the run folder. This is the one place where the step is decided: the workers
    follow the stream's first batch.
    """
    newest, broken = newest_checkpoint(run)
    for line in broken:
        log_error(run, line)
    return 0 if newest is None else read_meta(newest).step


def prepare_folder(run: StoragePath, config: Config) -> dict[str, Any] | None:
    """Make the run folder, or check that the run in it can be resumed.

    A run that died before its first checkpoint has nothing to resume: with other settings, it starts afresh.

    Args:
        run: run folder.
        config: configuration of the run as the user wrote it.

    Returns:
        The result if the run is finished, else None.

    Raises:
        UserError: the folder holds another run, holds one and `train.resume` is false, or cannot be written.
    """
    if (run / CONFIG).exists():
        newest, broken = newest_checkpoint(run)
        if not config.train.resume and newest is not None:
            raise UserError(f"train.run: {run} holds a run, and train.resume is false; choose another folder")
        result = read_result(run)
        changed = first_difference(config, read_model(run / CONFIG, Config, read_yaml))
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


def trained_precision(run: StoragePath, config: Config) -> str | None:
    """Return the precision in which a run has been trained so far; None before its first checkpoint.

    Raises:
        UserError: the configuration names another one.
    """
    # Not `newest_checkpoint`, which reads whole checkpoints to verify them.
    if not newest_written(run):
        return None
    configured = read_model(run / CONFIG, Config, read_yaml).train.precision
    recorded = (attempt.precision for attempt in reversed(read_attempts(run)) if attempt.precision)
    precision = next(recorded, configured)
    if config.train.precision not in ("auto", precision):
        raise UserError(
            f"train.precision: {config.train.precision}, but {run} has been trained in {precision}; "
            "choose another folder"
        )
    return precision


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
"""Settings that may change when a run is resumed: none changes what a step computes, or on which rows."""


def first_difference(config: Config, before: Config) -> str | None:
    """Return the dotted path of the first setting that two configurations of one run must share and do not."""
    ours, theirs = (_leaves(each.model_dump(mode="json", exclude=MAY_CHANGE)) for each in (config, before))
    if "auto" in (ours["train.precision"], theirs["train.precision"]):
        # The type that `auto` became is compared by `trained_precision`.
        del ours["train.precision"], theirs["train.precision"]
    for leaves in (ours, theirs):
        # Teachers answer alike in a pool and inline.
        if leaves["teachers.placement"] == "inline":
            leaves["teachers.placement"] = "pool"
    return next((path for path in sorted(ours.keys() | theirs.keys()) if ours.get(path) != theirs.get(path)), None)


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        key: value for name, child in tree.items() for key, value in _leaves(child, f"{path}.{name}".strip(".")).items()
    }
