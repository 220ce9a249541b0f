"""Whether a cluster has room, at any time, for what a job asks of it."""

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
from multas_ray.ray_setup import on_cluster

JOINING_S = 30.0
"""How long a cluster's nodes may take to join."""
TINY = 1e-6


@dataclass(frozen=True)
class Ask:
    """So many actors or tasks, at the same time."""

    key: str
    """Of the configuration."""
    count: int
    resources: Resources

    def __str__(self) -> str:
        labels = f" on nodes labelled {_mapping(self.resources.labels)}" if self.resources.labels else ""
        return f"{self.key}: {self.count} x {_mapping(bundle(self.resources))}{labels}"


@dataclass(frozen=True)
class Node:
    """A node."""

    total: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = {key: value for key, value in self.total.items() if ":" not in key and key not in HIDDEN}
        labels = {key: value for key, value in self.labels.items() if key not in HIDDEN_LABELS}
        return _mapping(shown) + (f" labelled {_mapping(labels)}" if labels else "")


HIDDEN = ("memory", "object_store_memory")
HIDDEN_LABELS = ("ray.io/node-id",)


def asks(config: Config) -> list[Ask]:
    """What a run needs at least to go on."""
    workers = config.train.workers
    found = [Ask("train.resources", workers[0] if isinstance(workers, list) else workers, config.train.resources)]
    teachers = len(config.distilled_tasks()) * config.teachers.replicas
    if teachers and config.teachers.placement == "pool":
        found.append(Ask("teachers.resources", teachers, config.teachers.resources))
    # A task of the training stream, and one of the validation stream.
    return [*found, Ask("data.resources", 2, config.data.resources)]


def check_placement(wanted: Sequence[Ask], nodes: Callable[[], Sequence[Node]] | None = None) -> None:
    """Refuse what the cluster can never place, whatever else it runs. Nodes that are still joining are waited for.
    Where an autoscaler may start others, it says what the job waits for; what has no room on the most nodes that
    `ray up`'s may start is refused too.

    Args:
        nodes: of the cluster; default: of the one that this process is connected to.

    Raises:
        UserError: says what was asked, and what the cluster has.
    """
    nodes = nodes or cluster_nodes
    # No node joins a Ray that was started here.
    until = monotonic() + (JOINING_S if on_cluster() and not autoscaled() else 0)
    while True:
        there = list(nodes())
        lacking = unplaced(wanted, there)
        if lacking is None:
            return
        if monotonic() >= until:
            break
        sleep(1)
    has = _counted(there)
    others = (
        f" beside {'; '.join(str(ask) for ask in wanted if ask is not lacking)}" if fits_alone(lacking, there) else ""
    )
    most = startable()
    never = unplaced(wanted, most) if most else None
    if never is not None:
        raise UserError(f"{never}: no room in the cluster, whose autoscaler may start {_counted(most)}")
    if autoscaled():
        print(f"{lacking}{others}: waits for the autoscaler to start nodes; the cluster has {has}", flush=True)
        return
    raise UserError(f"{lacking}{others}: no room in the cluster, which has {has}")


def _counted(nodes: Iterable[Node]) -> str:
    return ", ".join(f"{count} x {node}" for node, count in Counter(map(str, nodes)).items())


def fits_alone(ask: Ask, nodes: Sequence[Node]) -> bool:
    """Whether there is room for this one without the others."""
    return unplaced([ask], nodes) is None


def unplaced(wanted: Sequence[Ask], nodes: Sequence[Node]) -> Ask | None:
    """The first that finds no room on the nodes when each is put, one after another, where it fits; None if all do.

    What is hardest to place goes first: GPUs and custom resources, then labels, then what is large.
    """
    left = [dict(node.total) for node in nodes]
    for ask in sorted(
        wanted,
        key=lambda ask: (not ask.resources.gpu, not ask.resources.custom, not ask.resources.labels, -ask.resources.cpu),
    ):
        needs = bundle(ask.resources)
        for _ in range(ask.count):
            place = next(
                (
                    free
                    for node, free in zip(nodes, left, strict=True)
                    if _labelled(node, ask.resources.labels)
                    and all(free.get(key, 0) + TINY >= value for key, value in needs.items())
                ),
                None,
            )
            if place is None:
                return ask
            for key, value in needs.items():
                place[key] -= value
    return None


def bundle(resources: Resources) -> dict[str, float]:
    """By Ray's names, what is above zero."""
    own = {"CPU": resources.cpu, "GPU": resources.gpu} | resources.custom
    return {key: value for key, value in own.items() if value > 0}


def _labelled(node: Node, selector: Mapping[str, str]) -> bool:
    return all(label_matches(node.labels.get(key), value) for key, value in selector.items())


def label_matches(label: str | None, condition: str) -> bool:
    """Ray's conditions on a label: `a`, `!a`, `in(a,b)`, `!in(a,b)`. A label that a node lacks is none of them."""
    negated, condition = condition.startswith("!"), condition.removeprefix("!")
    several = condition.startswith("in(") and condition.endswith(")")
    values = [value.strip() for value in condition[3:-1].split(",")] if several else [condition]
    return (label in values) != negated


def cluster_nodes() -> list[Node]:
    """The nodes of this process's cluster."""
    return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]


RAY_UP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` puts a cluster's file on its head."""


def autoscaled() -> bool:
    """Whether this process is on the head of a cluster that grows with what is asked: KubeRay says so by a variable,
    `ray up` by a file."""
    return "RAY_enable_autoscaler_v2" in os.environ or RAY_UP.expanduser().exists()


def startable() -> list[Node]:
    """The most nodes that a cluster of `ray up` may have; none where that is not known, as on KubeRay, or where nodes
    find out their resources themselves."""
    if not RAY_UP.expanduser().exists():
        return []
    try:
        cluster = read_model(RAY_UP.expanduser(), _Cluster, read_yaml)
    except UserError:
        # Of another version of Ray, say.
        return []
    found: list[Node] = []
    for name, kind in cluster.available_node_types.items():
        if not kind.resources:
            return []
        most = cluster.max_workers if kind.max_workers is None else min(kind.max_workers, cluster.max_workers)
        found += [Node(kind.resources, kind.labels)] * (1 if name == cluster.head_node_type else most)
    return found


class _NodeType(BaseModel):
    resources: dict[str, float] | None = None
    labels: dict[str, str] = {}
    max_workers: int | None = None


class _Cluster(BaseModel):
    """Of a file of `ray up`, what is asked here."""

    available_node_types: dict[str, _NodeType]
    head_node_type: str
    max_workers: int = Field(2, le=100_000)


def _mapping(values: Mapping[str, object]) -> str:
    inner = ", ".join(
        f"{key}: {value:g}" if isinstance(value, float) else f"{key}: {value}" for key, value in values.items()
    )
    return f"{{{inner}}}"
