"""A Ray that fits the machine, and what there is of a cluster."""

import logging
import os
import socket
import sys
from typing import Any

import ray

from multas_ray.errors import RunError, first_line
from multas_ray.stop import family, kill

LOCAL = "MULTAS_LOCAL_RAY"
"""Environment variable of the processes of a Ray that `start_ray` has started."""

QUIET_DAEMONS = {
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "86400",
    "REPORTER_UPDATE_INTERVAL_MS": "10000",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "60",
    "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "5",
}
"""Environment variables of Ray's daemons on this machine."""


def start_ray(cpus: int = 4, object_store: int | None = None) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine.

    Args:
        cpus: see below.
        object_store: bytes of a local Ray's object store; Ray's default is 30 % of the memory.

    A local Ray claims at least `cpus` and at least four logical CPUs, which are admission tokens and no threads: with
    fewer, Ray Train and Ray Data wait for one another. It keeps its dashboard, bound to localhost, because Ray's
    clean-up of a killed run asks it; and it is quiet: a job prints its own progress.
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
    # Reports (checkpoints) are taken over once in this time; Ray's two seconds are long for short runs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if on_cluster():
        ray.init(**settings)
        return
    # glibc gives a large tensor's memory back to the kernel as soon as it is freed, so that each step of a training on
    # CPU has its pages mapped and zeroed anew: a tenth of the time. In bytes: below this much it is kept. All of it in
    # the main arena: a thread's own, such as Ray Train's training thread has, gives its memory back whatever is set.
    for setting in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        os.environ.setdefault(setting, str(2**30))
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    # Ray's daemons look ten times a second for new log files, whose lines nobody asks for. An idle Ray takes 0.05 of a
    # core with these, 0.07 without.
    for setting, value in QUIET_DAEMONS.items():
        os.environ.setdefault(setting, value)
    # Ray keeps as many processes without work as there are CPUs, and each wakes a hundred times a second: three slow
    # two workers on two cores by a thirtieth. As many as there are data tasks at a time are kept, as each evaluation
    # would begin four seconds later without a process that has imported PyTorch already.
    os.environ.setdefault("RAY_num_workers_soft_limit", str(data_tasks()))
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "5000")
    # No cloud takes this machine away with a notice.
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
            # Ray leaves the processes that it had started.
            ray.shutdown()
            kill(set(family()) - set(before))
            if attempt == STARTS:
                raise RunError(f"Ray did not start in {STARTS} attempts ({first_line(error)})") from None
            print("Ray did not start in time (machine busy?): trying again", file=sys.stderr, flush=True)


STARTS = 3
"""Attempts to start a local Ray, which gives its processes some 30 seconds that cannot be changed."""


def started_late(error: Exception) -> bool:
    """Whether this may be why Ray did not start on a busy machine: a process of it that did not answer, or ended. Ray
    raises much of that as bare exceptions. A wrong argument or a full disk is none."""
    kinds = (RuntimeError, TimeoutError, ConnectionError, ray.exceptions.RayError)
    return type(error) is Exception or isinstance(error, kinds)


def _start_local(settings: dict[str, Any]) -> None:
    """Start Ray here, such that its processes know its address.

    They do not by themselves: where another Ray runs on the machine, the one that is to free the placement group of a
    stopped trial would look for the trial there, and a search would run out of CPUs.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    own = {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}", LOCAL: "1"}
    os.environ |= own
    try:
        ray.init(**settings)
    finally:
        for name in own:
            del os.environ[name]


def on_cluster() -> bool:
    """Whether Ray is a cluster that was there before, rather than one started on this machine by `start_ray`. A task of
    a cluster, such as a trial, is not told its address."""
    in_task = ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE
    return LOCAL not in os.environ and (in_task or bool(os.environ.get("RAY_ADDRESS")))


def warn_if_passing(setting: str, path: str) -> None:
    """Say so where results are to lie in what Ray has unpacked of a submitted job, on one node and for a while."""
    if UNPACKED in path:
        print(f"{setting}: {path} goes when the job is over; give an absolute path that all nodes share, or a bucket")


UNPACKED = "/runtime_resources/working_dir_files/"


def cluster_cores() -> int:
    """CPUs that do work: of the cluster, or the cores of this machine where Ray was started on it (see `start_ray`)."""
    if on_cluster():
        start_ray()
        return int(ray.cluster_resources().get("CPU", 1))
    return os.cpu_count() or 1


def data_tasks() -> int:
    """Data tasks at a time of a run that does not say how many (`data.workers`)."""
    return max(1, cluster_cores() // 2)


def cluster_gpus() -> int:
    """GPUs of the cluster, or of this machine where Ray was or will be started on it."""
    if on_cluster():
        start_ray()
        return int(ray.cluster_resources().get("GPU", 0))
    # Which takes seconds to import.
    import torch

    return torch.cuda.device_count()
