"""Placement of a job's actors and tasks: whether a cluster has, or can ever have, room for all of them at once."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import ray
from pydantic import BaseModel, Field

from multas_ray.config import Config, Resources
from multas_ray.documents import read_model, read_yaml
from multas_ray.errors import UserError
from multas_ray.ray_setup import data_tasks, on_cluster

JOINING_S = 30.0
"""Seconds that a cluster's nodes may take to join."""
TINY = 1e-6
"""Tolerance of sums of fractions of CPUs and GPUs."""


@dataclass(frozen=True)
class Ask:
    """Request for a number of actors or tasks at the same time."""

    key: str
    """Configuration key or flag that sets it, named in messages."""
    count: int
    resources: Resources
    """Reservation of each."""

    def __str__(self) -> str:
        """Return the request as messages show it."""
        labels = f" on nodes labelled {_mapping(self.resources.labels)}" if self.resources.labels else ""
        return f"{self.key}: {self.count} x {_mapping(bundle(self.resources))}{labels}"


@dataclass(frozen=True)
class Node:
    """Node of a cluster."""

    total: Mapping[str, float]
    """Resources by Ray's names, in use or not."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the node as messages show it."""
        shown = {key: value for key, value in self.total.items() if ":" not in key and key not in HIDDEN}
        labels = {key: value for key, value in self.labels.items() if key not in HIDDEN_LABELS}
        return _mapping(shown) + (f" labelled {_mapping(labels)}" if labels else "")


HIDDEN = ("memory", "object_store_memory")
HIDDEN_LABELS = ("ray.io/node-id",)
"""Resources and labels that every node has, left out of messages."""


def asks(config: Config) -> list[Ask]:
    """List the least requests with which a run can make progress."""
    workers = config.train.workers
    requests = [Ask("train.resources", workers[0] if isinstance(workers, list) else workers, config.train.resources)]
    teachers = len(config.distilled_tasks()) * config.teachers.replicas
    if teachers and config.teachers.placement == "pool":
        requests.append(Ask("teachers.resources", teachers, config.teachers.resources))
    # A task of the training stream, and one of the validation stream.
    return [*requests, Ask("data.resources", 2, config.data.resources)]


def cpus_needed(config: Config) -> int:
    """Return the number of logical CPUs that a run reserves."""
    teachers = len(config.distilled_tasks()) * config.teachers.replicas if config.teachers.placement == "pool" else 0
    reserved = (
        config.train.most_workers * config.train.resources.cpu,
        teachers * config.teachers.resources.cpu,
        (config.data.workers or data_tasks()) * config.data.resources.cpu,
    )
    return math.ceil(sum(reserved))


def check_placement(wanted: Sequence[Ask], nodes: Callable[[], Sequence[Node]] | None = None) -> None:
    """Refuse requests that the cluster can never place together, even with nothing else running on it.

    Nodes that are still joining are waited for. Where an autoscaler may start further nodes, a line says which request
    waits for them; requests without room on the most nodes that the autoscaler of `ray up` may start are refused.

    Args:
        wanted: all requests of the job.
        nodes: lists the nodes of the cluster; default: those of the cluster that this process is connected to.

    Raises:
        UserError: a request has no room; names it and the cluster's nodes.
    """
    nodes = nodes or cluster_nodes
    # No node joins a Ray that was started here.
    until = monotonic() + (JOINING_S if on_cluster() and not autoscaled() else 0)
    while True:
        present = list(nodes())
        pending = unplaced(wanted, present)
        if pending is None:
            return
        if monotonic() >= until:
            break
        sleep(1)
    others = "; ".join(str(ask) for ask in wanted if ask is not pending)
    shown = f"{pending} beside {others}" if fits_alone(pending, present) else str(pending)
    most = startable()
    never = unplaced(wanted, most) if most else None
    if never is not None:
        raise UserError(f"{never}: no room in the cluster, whose autoscaler may start {_counted(most)}")
    if autoscaled():
        print(f"{shown}: waits for the autoscaler to start nodes; the cluster has {_counted(present)}", flush=True)
        return
    raise UserError(f"{shown}: no room in the cluster, which has {_counted(present)}")


def _counted(nodes: Iterable[Node]) -> str:
    return ", ".join(f"{count} x {node}" for node, count in Counter(map(str, nodes)).items())


def fits_alone(ask: Ask, nodes: Sequence[Node]) -> bool:
    """Whether there is room for a request without any other."""
    return unplaced([ask], nodes) is None


def unplaced(wanted: Sequence[Ask], nodes: Sequence[Node]) -> Ask | None:
    """Place requests one after another on the first node that fits, the hardest first.

    Requests with GPUs or custom resources are the hardest, then those with labels, then large ones.

    Returns:
        The first request without room; None if all are placed.
    """
    free = [dict(node.total) for node in nodes]
    for ask in sorted(
        wanted,
        key=lambda ask: (not ask.resources.gpu, not ask.resources.custom, not ask.resources.labels, -ask.resources.cpu),
    ):
        needs = bundle(ask.resources)
        for _ in range(ask.count):
            place = next(
                (
                    rest
                    for node, rest in zip(nodes, free, strict=True)
                    if _labelled(node, ask.resources.labels)
                    and all(rest.get(key, 0) + TINY >= value for key, value in needs.items())
                ),
                None,
            )
            if place is None:
                return ask
            for key, value in needs.items():
                place[key] -= value
    return None


def bundle(resources: Resources) -> dict[str, float]:
    """Convert a reservation to a mapping by Ray's names, without zeros."""
    amounts = {"CPU": resources.cpu, "GPU": resources.gpu} | resources.custom
    return {key: value for key, value in amounts.items() if value > 0}


def _labelled(node: Node, selector: Mapping[str, str]) -> bool:
    return all(label_matches(node.labels.get(key), value) for key, value in selector.items())


def label_matches(label: str | None, condition: str) -> bool:
    """Whether a label meets one of Ray's conditions: `a`, `!a`, `in(a,b)` or `!in(a,b)`.

    Args:
        label: value of the node's label; None, which equals no value, where the node has no such label.
        condition: the condition.
    """
    negated, condition = condition.startswith("!"), condition.removeprefix("!")
    several = condition.startswith("in(") and condition.endswith(")")
    values = [value.strip() for value in condition[3:-1].split(",")] if several else [condition]
    return (label in values) != negated


def cluster_nodes() -> list[Node]:
    """List the living nodes of the cluster that this process is connected to."""
    return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]


RAY_UP = Path("~/ray_bootstrap_config.yaml")
"""Path of the cluster's file on the head of a cluster started by `ray up`."""


def autoscaled() -> bool:
    """Whether this process is on the head of a cluster with an autoscaler.

    KubeRay marks one by an environment variable, `ray up` by a file.
    """
    return "RAY_enable_autoscaler_v2" in os.environ or RAY_UP.expanduser().exists()


def startable() -> list[Node]:
    """List the most nodes that a cluster of `ray up` may have.

    Returns:
        No nodes where that is not known: on KubeRay, or where nodes find out their resources themselves.
    """
    if not RAY_UP.expanduser().exists():
        return []
    try:
        cluster = read_model(RAY_UP.expanduser(), _Cluster, read_yaml)
    except UserError:
        # The file of another version of Ray, for example.
        return []
    nodes: list[Node] = []
    for name, kind in cluster.available_node_types.items():
        if not kind.resources:
            return []
        most = cluster.max_workers if kind.max_workers is None else min(kind.max_workers, cluster.max_workers)
        nodes += [Node(kind.resources, kind.labels)] * (1 if name == cluster.head_node_type else most)
    return nodes


class _NodeType(BaseModel):
    resources: dict[str, float] | None = None
    labels: dict[str, str] = {}
    max_workers: int | None = None


class _Cluster(BaseModel):
    """Part of a cluster's file of `ray up` that is read here."""

    available_node_types: dict[str, _NodeType]
    head_node_type: str
    max_workers: int = Field(2, le=100_000)


def _mapping(values: Mapping[str, object]) -> str:
    inner = ", ".join(
        f"{key}: {value:g}" if isinstance(value, float) else f"{key}: {value}" for key, value in values.items()
    )
    return f"{{{inner}}}"
