"""Start of a Ray that fits the machine, and the resources of a cluster."""

import logging
import os
import socket
import sys
from typing import Any

import ray

from multas_ray.errors import RunError, first_line
from multas_ray.stop import family, kill

LOCAL = "MULTAS_LOCAL_RAY"
"""Environment variable that marks the processes of a Ray started by `start_ray`."""

QUIET_DAEMONS = {
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "86400",
    "REPORTER_UPDATE_INTERVAL_MS": "10000",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "60",
    "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "5",
}
"""Environment variables that make Ray's daemons on this machine poll less often."""


def start_ray(cpus: int = 4, object_store: int | None = None) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine.

    A local Ray claims at least `cpus` and at least four logical CPUs, which are admission tokens and no threads: with
    fewer, Ray Train and Ray Data wait for one another. It keeps its dashboard, bound to localhost, because Ray's
    clean-up of a killed run asks it; and it is quiet: a job prints its own progress.

    Args:
        cpus: least number of logical CPUs of a local Ray.
        object_store: bytes of a local Ray's object store; Ray's default is 30 % of the memory.

    Raises:
        RunError: the local Ray did not start in several attempts.
    """
    if ray.is_initialized():
        return
    # Not imported above: it imports Ray Data, for most of a second, and the processes of teachers do without.
    from multas_ray.ray_internals import silence_ray

    silence_ray()
    # Tells how long its operations take, and shows failures of trials, which their jobs report, as tracebacks.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Of Tune's two ways to show its progress, the one that can be told to show nothing.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    # Ray runs its workers at low priority, so that anything else on the machine outruns the training.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Interval in which reports (checkpoints) are registered; Ray's two seconds are long for short runs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if on_cluster():
        ray.init(**settings)
        return
    # glibc returns a large tensor's memory to the kernel as soon as it is freed, so that each step of a training on CPU
    # has its pages mapped and zeroed anew: a tenth of the time. Blocks below this many bytes are kept. All in the main
    # arena: that of a thread, such as Ray Train's training thread, returns its memory whatever is set.
    for setting in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        os.environ.setdefault(setting, str(2**30))
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    # Ray's daemons look for new log files ten times a second, and nobody reads their lines. An idle Ray takes 0.05 of a
    # core with these settings, 0.07 without.
    for setting, value in QUIET_DAEMONS.items():
        os.environ.setdefault(setting, value)
    # Ray keeps as many idle processes as there are CPUs, and each wakes 100 times a second: three of them cost two busy
    # cores 3 %. One per concurrent data task is kept: each evaluation would begin 4 s later without processes that have
    # imported PyTorch already.
    os.environ.setdefault("RAY_num_workers_soft_limit", str(data_tasks()))
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "5000")
    # This machine is no cloud's to preempt.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    settings |= {"address": "local", "num_cpus": max(4, cpus, os.cpu_count() or 1)}
    settings |= {"object_store_memory": object_store}
    settings |= {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    for attempt in range(1, STARTS + 1):
        before = family()
        try:
            _start_local(settings)
            return
        except Exception as error:
            if not started_late(error):
                raise
            # Ray leaves processes of the failed start behind.
            ray.shutdown()
            kill(set(family()) - set(before))
            if attempt == STARTS:
                raise RunError(f"Ray did not start in {STARTS} attempts ({first_line(error)})") from None
            print("Ray did not start in time (machine busy?): trying again", file=sys.stderr, flush=True)


STARTS = 3
"""Attempts to start a local Ray. Ray gives its processes about 30 s, which cannot be changed."""


def started_late(error: Exception) -> bool:
    """Whether an error of Ray's start may be due to a busy machine: one of its processes did not answer, or ended.

    Ray raises many of these as bare exceptions. A wrong argument or a full disk is none of them.
    """
    kinds = (RuntimeError, TimeoutError, ConnectionError, ray.exceptions.RayError)
    return type(error) is Exception or isinstance(error, kinds)


def _start_local(settings: dict[str, Any]) -> None:
    """Start Ray on this machine so that its processes know its address.

    By default they do not: where another Ray runs on the machine, the process that frees the placement group of a
    stopped trial would look for the trial in that one, and a search would run out of CPUs.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    address = {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}", LOCAL: "1"}
    os.environ |= address
    try:
        ray.init(**settings)
    finally:
        for name in address:
            del os.environ[name]


def on_cluster() -> bool:
    """Whether Ray is an existing cluster rather than one that `start_ray` started on this machine.

    The tasks of a cluster, such as a trial, do not have RAY_ADDRESS.
    """
    in_task = ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE
    return LOCAL not in os.environ and (in_task or bool(os.environ.get("RAY_ADDRESS")))


def warn_if_passing(setting: str, path: str) -> None:
    """Warn if results would lie in the unpacked files of a submitted job, which are on one node and deleted after it.

    Args:
        setting: configuration key of the path.
        path: folder of the results.
    """
    if UNPACKED in path:
        print(f"{setting}: {path} goes when the job is over; give an absolute path that all nodes share, or a bucket")


UNPACKED = "/runtime_resources/working_dir_files/"
"""Part of the path of a folder into which Ray unpacks a submitted job."""


def cluster_cores() -> int:
    """Number of CPUs that do work: the cluster's, or this machine's cores where Ray was started on it."""
    if on_cluster():
        start_ray()
        return int(ray.cluster_resources().get("CPU", 1))
    return os.cpu_count() or 1


def data_tasks() -> int:
    """Default number of concurrent data tasks of a run (`data.workers`)."""
    return max(1, cluster_cores() // 2)


def cluster_gpus() -> int:
    """Number of GPUs of the cluster, or of this machine where Ray was or will be started on it."""
    if on_cluster():
        start_ray()
        return int(ray.cluster_resources().get("GPU", 0))
    # Imported here: it takes seconds.
    import torch

    return torch.cuda.device_count()
