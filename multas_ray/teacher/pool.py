"""The teacher pool: Ray actors that answer the requests of any number of training workers, of one run or of several."""

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
from ray.actor import ActorHandle
from ray.util.metrics import Counter, Gauge, Histogram
from ray.util.state import list_actors

from multas_ray.config import Task, TeachersConfig
from multas_ray.data.batch import TrainBatch
from multas_ray.errors import UserError
from multas_ray.teacher.teacher import Answer, SoftTargets, Teacher

Handles = dict[Task, list[ActorHandle]]

NAMESPACE = "multas-ray teachers"
"""Of the actors of named pools: `<pool>/<task>/<number>`."""
RECENT_SECONDS = 30.0
"""Over which rates and latencies are taken."""


class Served(Protocol):
    """A dataclass that a replica serves: `TeacherSpec`, or what a benchmark puts in its place."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def load(self, device: str) -> Teacher:
        """Called once, where the replica runs."""
        ...


@dataclass
class ReplicaStatus:
    """What a replica says of itself."""

    instance: str
    """Another one after a restart."""
    queue: int
    """Requests that wait or are being answered."""
    images: int
    """Answered since its start."""
    images_per_s: float
    """Recently."""
    latency_s: float
    """From a request's arrival to its answer, the mean of the recent ones; 0 without any."""


@ray.remote
class TeacherActor:
    """A replica of one teacher. It answers requests one after another, and questions about itself at once."""

    def __init__(self, source: Served, threads: int, tags: Mapping[str, str]) -> None:
        # One thread computes, and its setting is the one that counts.
        self.compute = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self.spec = source
        self.teacher = self.compute.submit(source.load, "cuda" if ray.get_gpu_ids() else "cpu").result()
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
        """Soft targets of some rows of images (n, 3, size, size) uint8."""
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
        """How it fares."""
        now = time()
        self._forget(now)
        span = max(min(RECENT_SECONDS, now - self.started), 1e-3)
        rate = sum(rows for _, rows, _ in self.recent) / span
        latency = sum(seconds for _, _, seconds in self.recent) / max(1, len(self.recent))
        return ReplicaStatus(self.instance, self.queue, self.images, rate, latency)

    async def serves(self) -> Served:
        """What it was started with; answers once the teacher is loaded."""
        return self.spec


def start_pool(config: TeachersConfig, sources: Mapping[Task, Served]) -> Handles:
    """Start `config.replicas` actors of each teacher, or attach to those of the named pool; wait until all are loaded.

    A pool without a name lives as long as its handles and the process that called this: through restarts of the
    training workers. A named one (`config.pool`) lives until `stop_pool`; who comes later gets the replicas that are
    there, and starts those that are missing.

    Raises:
        UserError: the named pool serves another teacher, or answers otherwise.
    """
    options: dict[str, Any] = config.resources.options() | {"max_restarts": -1, "max_task_retries": -1}
    # Within a trial of a study they would else be put into its own placement group, which has no room for them.
    options |= {"scheduling_strategy": "DEFAULT"}
    handles: Handles = {}
    for task, source in sources.items():
        there = _numbers(config.pool, task)
        # Before any is added to a pool that serves something else.
        _check(config.pool, task, [ray.get_actor(f"{config.pool}/{task}/{n}", NAMESPACE) for n in there], source)
        handles[task] = []
        for number in sorted({*range(config.replicas), *there}):
            if config.pool is not None:
                name = f"{config.pool}/{task}/{number}"
                # At once, so that two runs that start together do not make two pools.
                options |= {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
            tags = {"pool": config.pool or "", "task": task, "replica": str(number)}
            actor = TeacherActor.options(**options)  # type: ignore[attr-defined]
            handles[task].append(actor.remote(source, config.threads, tags))
    for task, source in sources.items():
        _check(config.pool, task, handles[task], source)
    return handles


def _check(pool: str | None, task: Task, replicas: Sequence[ActorHandle], wanted: Served) -> None:
    """Wait for replicas, and refuse those of another teacher."""
    for served in ray.get([replica.serves.remote() for replica in replicas]):
        difference = _difference(served, wanted)
        if difference is not None:
            raise UserError(
                f"teachers.pool: pool '{pool}' serves a {task} teacher with another {difference}; stop it "
                "(jobs/teachers.py stop) or name another"
            )


def stop_pool(name: str) -> int:
    """End the actors of a named pool; how many there were."""
    actors = _named(name)
    for actor in actors:
        ray.kill(ray.get_actor(actor, NAMESPACE))
    return len(actors)


def pool_status() -> list[dict[str, Any]]:
    """Every replica of every named pool: pool, task, replica, state (Ray's, e.g. ALIVE or RESTARTING), restarts, and
    where it answers within a few seconds, queue, images, images_per_s and latency_s."""
    # Else it would look for a cluster on this machine, of which there may be several.
    address = ray.get_runtime_context().gcs_address
    chosen = [("ray_namespace", "=", NAMESPACE), ("state", "!=", "DEAD")]
    known = list_actors(address, chosen, detail=True, limit=10_000)
    asked = {}
    rows = []
    for actor in sorted(known, key=lambda actor: actor.name):
        pool, task, number = actor.name.rsplit("/", 2)
        rows.append({"pool": pool, "task": task, "replica": int(number), "state": actor.state})
        rows[-1]["restarts"] = int(actor.num_restarts or 0)
        if actor.state == "ALIVE":
            asked[ray.get_actor(actor.name, NAMESPACE).status.remote()] = rows[-1]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=5) if asked else ([], [])
    for answer in answered:
        status = ray.get(answer)
        asked[answer] |= {field.name: getattr(status, field.name) for field in fields(status)[1:]}
    return rows


def _named(pool: str) -> list[str]:
    everyone = ray.util.list_named_actors(all_namespaces=True)
    return [a["name"] for a in everyone if a["namespace"] == NAMESPACE and a["name"].rsplit("/", 2)[0] == pool]


def _numbers(pool: str | None, task: Task) -> list[int]:
    """Of the replicas of a task that a named pool has."""
    parts = [name.rsplit("/", 2) for name in _named(pool)] if pool is not None else []
    return [int(number) for _, of, number in parts if of == task]


def _difference(served: Served, wanted: Served) -> str | None:
    """The first field in which two teachers differ; the source may, if its weights do not."""
    there, asked = _facts(served), _facts(wanted)
    return next((name for name in asked if name != "source" and there.get(name) != asked[name]), None)


def _facts(record: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, those of its dataclasses among them."""
    facts: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        facts |= _facts(value) if is_dataclass(value) else {field.name: value}
    return facts


class PoolClient:
    """A worker's view of the pool. Each request goes to the replica with the fewest of this worker's in flight; of
    equals, to each in turn, beginning anywhere, so that many workers do not all begin with the same one."""

    def __init__(self, handles: Handles) -> None:
        self.handles = handles
        self.in_flight: dict[Task, list[set[Future]]] = {task: [set() for _ in h] for task, h in handles.items()}
        self.turn = {task: random.randrange(len(replicas)) for task, replicas in handles.items()}

    def submit(self, batch: TrainBatch) -> Callable[[], SoftTargets]:
        """Send the images of the rows `batch.distil` to their teachers; the call that is returned waits for the
        answers.

        The images that some teacher needs enter the object store once, for all.
        """
        wanted = {task: rows for task, rows in batch.distil.items() if len(rows)}
        if not wanted:
            return dict
        images = batch.images
        needed = np.unique(np.concatenate(list(wanted.values())))
        shared = ray.put(images if len(needed) == len(images) else images[needed])
        answers: dict[Task, Future] = {}
        for task, rows in wanted.items():
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
    """A pool's figures for a run's log, asked for without waiting."""

    def __init__(self, handles: Handles) -> None:
        self.handles = handles
        self.asked: dict[ray.ObjectRef, tuple[Task, int]] = {}
        self.known: dict[tuple[Task, int], ReplicaStatus] = {}
        self.restarts = dict.fromkeys(handles, 0)

    def read(self) -> dict[str, float]:
        """What was answered since the last call, and ask again: of each task `teacher/<task>/replicas` that answered,
        `queue`, `images_per_s` (their sums), `latency_s` (their mean) and `restarts` since the run's start."""
        if self.asked:
            done, _ = ray.wait(list(self.asked), num_returns=len(self.asked), timeout=0)
            for answer in done:
                self._note(self.asked.pop(answer), answer)
        under_way = set(self.asked.values())
        for task, replicas in self.handles.items():
            for number, handle in enumerate(replicas):
                if (task, number) not in under_way:
                    self.asked[handle.status.remote()] = (task, number)
        figures: dict[str, float] = {}
        for task in self.handles:
            statuses = [status for (of, _), status in self.known.items() if of == task]
            if statuses:
                figures[f"teacher/{task}/replicas"] = len(statuses)
                figures[f"teacher/{task}/queue"] = sum(status.queue for status in statuses)
                figures[f"teacher/{task}/images_per_s"] = sum(status.images_per_s for status in statuses)
                figures[f"teacher/{task}/latency_s"] = sum(s.latency_s for s in statuses) / len(statuses)
                figures[f"teacher/{task}/restarts"] = self.restarts[task]
        return figures

    def _note(self, replica: tuple[Task, int], answer: ray.ObjectRef) -> None:
        status = ray.get(answer)
        before = self.known.get(replica)
        self.restarts[replica[0]] += before is not None and before.instance != status.instance
        self.known[replica] = status
