"""Teacher pool: Ray actors that answer the requests of any number of training workers, of one run or of several.

Plain actors, not Ray Serve, which has not been measured here. The pool relies on futures that fetch an answer as soon
as it is there (Serve's `DeploymentResponse` has none in Ray 2.60, only `result` and `await`), on one copy of a batch's
images for all teachers, on named pools that outlive a run, and on the comparison of every replica's teacher with the
run's own.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from time import time
from typing import Any, ClassVar, Protocol
from uuid import uuid4

import numpy as np
import ray
import torch
from pydantic import BaseModel
from ray.actor import ActorHandle
from ray.util.metrics import Counter, Gauge, Histogram
from ray.util.state import list_actors

from multas_ray.config import Task, TeachersConfig
from multas_ray.data.batch import TrainBatch, distilled_rows
from multas_ray.errors import UserError
from multas_ray.teacher.teacher import Answer, SoftTargets, Teacher

Handles = dict[Task, list[ActorHandle]]
"""Replicas of each task's teacher."""

NAMESPACE = "multas-ray teachers"
"""Namespace of the actors of named pools; an actor's name is `<pool>/<task>/<number>`."""
RECENT_SECONDS = 30.0
"""Seconds over which rates and latencies are averaged."""


class Served(Protocol):
    """Dataclass that describes a replica's teacher: `TeacherSpec`, or a simulated teacher of a benchmark."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def load(self, device: str) -> Teacher:
        """Load the teacher onto a PyTorch device; called once, in the replica."""
        ...


@dataclass
class ReplicaStatus:
    """State of a replica, as it reports it."""

    instance: str
    """Id of the replica's process: another one after a restart."""
    queue: int
    """Number of requests that wait or are being answered."""
    images: int
    """Number of images answered since the start of the process."""
    images_per_s: float
    """Images a second over the last RECENT_SECONDS."""
    latency_s: float
    """Mean seconds from a request's arrival to its answer over the last RECENT_SECONDS; 0 without requests."""


@ray.remote
class TeacherActor:
    """Replica of one teacher. It answers requests one after another, and questions about its state at once."""

    def __init__(self, spec: Served, threads: int, tags: Mapping[str, str]) -> None:
        """Load the teacher.

        Args:
            spec: description of the teacher.
            threads: number of CPU threads that compute an answer.
            tags: tags of the replica's metrics in Ray.
        """
        # PyTorch's number of threads is a setting of the thread that computes.
        self.compute = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self.spec = spec
        self.teacher = self.compute.submit(spec.load, "cuda" if ray.get_gpu_ids() else "cpu").result()
        self.instance = uuid4().hex
        self.started = time()
        self.queue = self.images = 0
        self.recent: deque[tuple[float, int, float]] = deque()
        keys = tuple(tags)
        self.metrics = (
            Counter("multas_teacher_images", "Images answered", keys),
            Gauge("multas_teacher_queue", "Requests that wait or are being answered", keys),
            Histogram("multas_teacher_latency_s", "Seconds to an answer", [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30], keys),
        )
        for metric in self.metrics:
            metric.set_default_tags(dict(tags))
        starts = Counter("multas_teacher_starts", "Starts of a replica: after the first, each follows a death", keys)
        starts.set_default_tags(dict(tags))
        starts.inc()

    async def soft_targets(self, images: np.ndarray, rows: np.ndarray) -> Answer:
        """Compute the soft targets of some rows of images.

        Args:
            images: (n, 3, size, size) uint8.
            rows: (m,) int64, ascending.

        Returns:
            Answer for the m rows.
        """
        counter, gauge, histogram = self.metrics
        arrived = time()
        self.queue += 1
        gauge.set(self.queue)
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self.compute, self._answer, images, rows)
        finally:
            self.queue -= 1
            gauge.set(self.queue)
        now = time()
        self.images += len(rows)
        self.recent.append((now, len(rows), now - arrived))
        self._forget(now)
        counter.inc(len(rows))
        histogram.observe(now - arrived)
        return answer

    def _answer(self, images: np.ndarray, rows: np.ndarray) -> Answer:
        return self.teacher(images if len(rows) == len(images) else images[rows])

    def _forget(self, now: float) -> None:
        while self.recent and self.recent[0][0] < now - RECENT_SECONDS:
            self.recent.popleft()

    async def status(self) -> ReplicaStatus:
        """Report the replica's state."""
        now = time()
        self._forget(now)
        span = max(min(RECENT_SECONDS, now - self.started), 1e-3)
        rate = sum(rows for _, rows, _ in self.recent) / span
        latency = sum(seconds for _, _, seconds in self.recent) / max(1, len(self.recent))
        return ReplicaStatus(self.instance, self.queue, self.images, rate, latency)

    async def serves(self) -> Served:
        """Return the description of the teacher, once it is loaded."""
        return self.spec


def start_pool(config: TeachersConfig, specs: Mapping[Task, Served]) -> Handles:
    """Start `config.replicas` actors of each teacher, or attach to those of the named pool; wait until all are loaded.

    A pool without a name lives as long as its handles and the calling process: through restarts of the training
    workers. A named pool (`config.pool`) lives until `stop_pool`; a later call gets its replicas, and starts those that
    are missing.

    Args:
        config: name of the pool, number of replicas, and reservation and threads of each.
        specs: teacher of each distilled task.

    Raises:
        UserError: the named pool serves another teacher, or answers otherwise.
    """
    options: dict[str, Any] = config.resources.options() | {"max_restarts": -1, "max_task_retries": -1}
    if config.runtime_env:
        options |= {"runtime_env": config.runtime_env}
    # In a trial of a study, Ray would put them into the trial's own placement group, which has no room for them.
    options |= {"scheduling_strategy": "DEFAULT"}
    handles: Handles = {}
    for task, spec in specs.items():
        running = _numbers(config.pool, task)
        # Before a replica is added to a pool that serves another teacher.
        _check(config.pool, task, [ray.get_actor(f"{config.pool}/{task}/{n}", NAMESPACE) for n in running], spec)
        handles[task] = []
        for number in sorted({*range(config.replicas), *running}):
            if config.pool is not None:
                name = f"{config.pool}/{task}/{number}"
                # Look-up and start in one call: two runs that start together make one pool.
                options |= {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
            tags = {"pool": config.pool or "", "task": task, "replica": str(number)}
            actor = TeacherActor.options(**options)  # type: ignore[attr-defined]
            handles[task].append(actor.remote(spec, config.threads, tags))
    for task, spec in specs.items():
        _check(config.pool, task, handles[task], spec)
    return handles


def _check(pool: str | None, task: Task, replicas: Sequence[ActorHandle], wanted: Served) -> None:
    """Wait until replicas have loaded, and check that they serve the wanted teacher."""
    for served in ray.get([replica.serves.remote() for replica in replicas]):
        difference = _difference(served, wanted)
        if difference is not None:
            raise UserError(
                f"teachers.pool: pool '{pool}' serves a {task} teacher with another {difference}; stop it "
                "(jobs/teachers.py stop) or name another"
            )


def stop_pool(name: str) -> int:
    """End the actors of a named pool.

    Returns:
        Number of actors.
    """
    actors = _named(name)
    for actor in actors:
        ray.kill(ray.get_actor(actor, NAMESPACE))
    return len(actors)


def pool_status() -> list[dict[str, Any]]:
    """Describe every replica of every named pool.

    Returns:
        A row for each replica: pool, task, replica (its number), state (Ray's, such as ALIVE or RESTARTING), restarts,
        and, if it answers within five seconds, queue, images, images_per_s and latency_s of its `ReplicaStatus`.
    """
    # Without the address, Ray looks for a cluster on this machine, of which there may be several.
    address = ray.get_runtime_context().gcs_address
    filters = [("ray_namespace", "=", NAMESPACE), ("state", "!=", "DEAD")]
    actors = list_actors(address, filters, detail=True, limit=10_000)
    requests = {}
    rows = []
    for actor in sorted(actors, key=lambda actor: actor.name):
        pool, task, number = actor.name.rsplit("/", 2)
        rows.append({"pool": pool, "task": task, "replica": int(number), "state": actor.state})
        rows[-1]["restarts"] = int(actor.num_restarts or 0)
        if actor.state == "ALIVE":
            requests[ray.get_actor(actor.name, NAMESPACE).status.remote()] = rows[-1]
    answers, _ = ray.wait(list(requests), num_returns=len(requests), timeout=5) if requests else ([], [])
    for answer in answers:
        status = ray.get(answer)
        requests[answer] |= {field.name: getattr(status, field.name) for field in fields(status)[1:]}
    return rows


def _named(pool: str) -> list[str]:
    """List the names of a pool's actors."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [a["name"] for a in actors if a["namespace"] == NAMESPACE and a["name"].rsplit("/", 2)[0] == pool]


def _numbers(pool: str | None, task: Task) -> list[int]:
    """List the numbers of a pool's replicas for a task; none without a name."""
    parts = [name.rsplit("/", 2) for name in _named(pool)] if pool is not None else []
    return [int(number) for _, served, number in parts if served == task]


def _difference(served: Served, wanted: Served) -> str | None:
    """Find the first field in which two teachers differ; the source may differ, its weights must not."""
    actual, expected = _facts(served), _facts(wanted)
    return next((name for name in {**expected, **actual} if actual.get(name) != expected.get(name)), None)


def _facts(record: Any, part: str = "") -> dict[str, Any]:
    """List the fields of a record by name, but for sources, with those of the records in it."""
    facts: dict[str, Any] = {}
    values = (
        dict(record) if isinstance(record, BaseModel) else {f.name: getattr(record, f.name) for f in fields(record)}
    )
    for name, value in values.items():
        if is_dataclass(value):
            facts |= _facts(value, part)
        elif isinstance(value, BaseModel):
            facts |= _facts(value, f"{part}{name}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            facts[f"number of {name}"] = len(value)
            for number, member in enumerate(value):
                facts |= _facts(member, f"{part}{number}.")
        elif name != "source":
            facts[f"{part}{name}"] = value
    return facts


class PoolClient:
    """Access of one worker to the pool.

    Each request goes to the replica with the fewest requests of this worker in flight. Replicas with equally few take
    turns from a random one on, so that many workers do not all begin with the same replica.
    """

    def __init__(self, handles: Handles) -> None:
        """Take the replicas of each task."""
        self.handles = handles
        self.in_flight: dict[Task, list[set[Future[Answer]]]] = {
            task: [set() for _ in replicas] for task, replicas in handles.items()
        }
        self.turn = {task: random.randrange(len(replicas)) for task, replicas in handles.items()}

    def submit(self, batch: TrainBatch) -> Callable[[], SoftTargets]:
        """Send the images of the rows `batch.distil` to their teachers.

        The images enter the object store once, for all teachers.

        Returns:
            A function that waits for the answers and returns them.
        """
        distil = distilled_rows(batch)
        if not distil:
            return dict
        images = batch.images
        needed = np.unique(np.concatenate(list(distil.values())))
        shared = ray.put(images if len(needed) == len(images) else images[needed])
        answers: dict[Task, Future[Answer]] = {}
        for task, rows in distil.items():
            replica = self._least_busy(task)
            places = np.flatnonzero(np.isin(needed, rows))
            request = self.handles[task][replica].soft_targets.remote(shared, places)
            # A future fetches the answer from its node as soon as it is there. Fetched by `ray.get` when it is due, an
            # answer of another node takes a second more every few times (Ray 2.60 looks again once a second).
            answers[task] = request.future()
            flight = self.in_flight[task][replica]
            flight.add(answers[task])
            answers[task].add_done_callback(flight.discard)

        def collect() -> SoftTargets:
            return {task: answer.result() for task, answer in answers.items()}

        return collect

    def _least_busy(self, task: Task) -> int:
        flights = self.in_flight[task]
        first = self.turn[task]
        self.turn[task] = (first + 1) % len(flights)
        return min(range(len(flights)), key=lambda replica: (len(flights[replica]), (replica - first) % len(flights)))


class PoolMonitor:
    """Reader of a pool's figures for a run's log, which never waits for a replica."""

    def __init__(self, handles: Handles) -> None:
        """Take the replicas of each task."""
        self.handles = handles
        self.requests: dict[ray.ObjectRef, tuple[Task, int]] = {}
        self.statuses: dict[tuple[Task, int], ReplicaStatus] = {}
        self.restarts = dict.fromkeys(handles, 0)

    def read(self) -> dict[str, float]:
        """Collect the answers to the last call's requests, and send new ones.

        Returns:
            For each task, over the replicas that have answered so far: `teacher/<task>/replicas` (their number),
            `queue` and `images_per_s` (sums), `latency_s` (mean) and `restarts` (since the run's start).
        """
        if self.requests:
            answers, _ = ray.wait(list(self.requests), num_returns=len(self.requests), timeout=0)
            for answer in answers:
                self._note(self.requests.pop(answer), answer)
        under_way = set(self.requests.values())
        for task, replicas in self.handles.items():
            for number, handle in enumerate(replicas):
                if (task, number) not in under_way:
                    self.requests[handle.status.remote()] = (task, number)
        figures: dict[str, float] = {}
        for task in self.handles:
            statuses = [status for (served, _), status in self.statuses.items() if served == task]
            if statuses:
                figures[f"teacher/{task}/replicas"] = len(statuses)
                figures[f"teacher/{task}/queue"] = sum(status.queue for status in statuses)
                figures[f"teacher/{task}/images_per_s"] = sum(status.images_per_s for status in statuses)
                figures[f"teacher/{task}/latency_s"] = sum(s.latency_s for s in statuses) / len(statuses)
                figures[f"teacher/{task}/restarts"] = self.restarts[task]
        return figures

    def _note(self, replica: tuple[Task, int], answer: ray.ObjectRef) -> None:
        status = ray.get(answer)
        before = self.statuses.get(replica)
        self.restarts[replica[0]] += before is not None and before.instance != status.instance
        self.statuses[replica] = status
