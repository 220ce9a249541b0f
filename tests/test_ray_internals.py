"""Canaries: every use of Ray's internals, tried for real on the installed release. Where one fails, Ray has changed
something that it never promised to keep; the message says what this project loses by it and where to mend it.

Nothing of multas_ray.ray_internals is imported above the tests: a name that Ray no longer has must fail the test that
explains it, not the collection of all.
"""

import importlib
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray

SOURCE = "see multas_ray/ray_internals.py"
IDLE = f"{SOURCE}:IdleBackoff; without it the stream's scheduler takes a third of a core from the training"
QUEUE = f"{SOURCE}:QueueLimit; without it a long run's chunks are all listed in the first minutes, and memory grows"
SILENCE = f"{SOURCE}:silence_ray; without it raylets' messages stand between a job's own lines"
TOKEN = f"{SOURCE}:TOKEN_LOGGER; without it every job begins with lines about Ray's token"
STORE = f"{SOURCE}:object_store_use; without it `jobs/benchmark.py memory` cannot run, all else can"
BACKPRESSURE = "ray.data._internal.execution.backpressure_policy"
USES = [
    ("ray.data._internal.execution.execution_callback", "ExecutionCallback", IDLE),
    (BACKPRESSURE, "BackpressurePolicy", QUEUE),
    (BACKPRESSURE, "ENABLED_BACKPRESSURE_POLICIES", QUEUE),
    (BACKPRESSURE, "ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY", QUEUE),
    ("ray._private.worker", "print_to_stdstream", SILENCE),
    ("ray._private.authentication.authentication_token_setup", "logger", TOKEN),
    ("ray._private.internal_api", "node_stats", STORE),
]


def changed(what: str, remedy: str) -> str:
    """The message of a failing test."""
    return f"Ray {ray.__version__} {what}: {remedy}"


def soon(condition: Callable[[], Any], seconds: float = 30) -> bool:
    """Whether a condition comes true within some seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@pytest.mark.parametrize(("module", "name", "remedy"), USES, ids=[name for _, name, _ in USES])
def test_ray_has_the_name(module: str, name: str, remedy: str) -> None:
    try:
        known = hasattr(importlib.import_module(module), name)
    except ImportError:
        known = False
    assert known, changed(f"has no {module}.{name}", remedy)


def test_the_scheduler_pauses_while_nothing_happens(started_ray, monkeypatch) -> None:
    from multas_ray import ray_internals
    from multas_ray.ray_internals import IdleBackoff, set_data_context

    def work(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Seven turns without news lead to the longest pause.
        time.sleep(2)
        return batch

    pauses: list[float] = []
    # Shorter than the pauses asked for. The scheduler of a data set that a process itself reads is a thread of it.
    monkeypatch.setattr(ray_internals, "sleep", lambda seconds: (pauses.append(seconds), time.sleep(0.001)))
    set_data_context()
    rows = ray.data.range(2, override_num_blocks=2).map_batches(work, batch_size=None).take_all()
    assert len(rows) == 2
    assert pauses, changed("does not call IdleBackoff after each turn of its scheduler", IDLE)
    assert max(pauses) == IdleBackoff.LONGEST_S, changed("counts tasks or outputs while nothing happens", IDLE)
    assert pauses.count(IdleBackoff.SHORTEST_S) > 1, changed("counts neither new tasks nor their outputs", IDLE)


def test_a_source_is_read_no_further_than_its_queue_may_be_long(started_ray, monkeypatch) -> None:
    from multas_ray.data.numbers import Numbers
    from multas_ray.ray_internals import QueueLimit, set_data_context

    limits: list[int | None] = []
    lengths: list[int] = []
    limit = QueueLimit.max_task_output_bytes_to_read

    def note(self: QueueLimit, op: Any) -> int | None:
        limits.append(limit(self, op))
        lengths.append(self._topology[op].output_queue.num_blocks)
        return limits[-1]

    monkeypatch.setattr(QueueLimit, "max_task_output_bytes_to_read", note)
    set_data_context()
    count = 8 * QueueLimit.BLOCKS
    source = ray.data.read_datasource(Numbers(count), num_cpus=0, override_num_blocks=1)
    batches = iter(source.iter_batches(batch_size=None))
    ids = [next(batches)["id"]]
    assert soon(lambda: 0 in limits), changed("does not ask QueueLimit, or counts no blocks in its queues", QUEUE)
    # Time to list them all.
    time.sleep(3)
    assert max(lengths) < 2 * QueueLimit.BLOCKS, changed("reads on although QueueLimit allows 0 bytes", QUEUE)
    ids += [batch["id"] for batch in batches]
    np.testing.assert_array_equal(np.concatenate(ids), np.arange(count))


def test_messages_of_raylets_come_through_what_is_silenced(started_ray, monkeypatch) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(ray._private.worker, "print_to_stdstream", lambda data, **_: shown.append(data["lines"]))
    ray._private.utils.push_error_to_driver(ray._private.worker.global_worker, "canary", "a raylet's message")
    assert soon(lambda: ["a raylet's message"] in shown), changed("shows raylets' messages in another way", SILENCE)


def test_messages_about_the_token_come_through_what_is_silenced(started_ray) -> None:
    from multas_ray.ray_internals import TOKEN_LOGGER

    logger = importlib.import_module(TOKEN_LOGGER).logger
    assert (logger.name, logger.level) == (TOKEN_LOGGER, logging.ERROR), changed("logs them under another name", TOKEN)


def test_a_node_tells_the_use_of_its_object_store(started_ray) -> None:
    from multas_ray.ray_internals import object_store_use

    (node,) = ray.nodes()
    size, held = 2**24, []

    def counts_what_is_put() -> bool:
        # Again where objects of an earlier test were freed in between.
        before = object_store_use(node)
        held.append(ray.put(np.zeros(size, np.uint8)))
        return soon(lambda: object_store_use(node).used >= before.used + size, seconds=3)

    spilled = object_store_use(node).spilled
    assert soon(counts_what_is_put), changed("counts other bytes", STORE)
    assert object_store_use(node).spilled == spilled
