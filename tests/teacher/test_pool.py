"""The pool: actors that answer as a teacher inside the worker would."""

import os
import signal
import threading
import time
import urllib.request

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from multas_ray.config import TeachersConfig
from multas_ray.data.batch import TrainBatch
from multas_ray.errors import UserError
from multas_ray.teacher.feed import InlineTeachers
from multas_ray.teacher.pool import NAMESPACE, PoolClient, PoolMonitor, pool_status, start_pool, stop_pool
from multas_ray.teacher.teacher import Answer, arrays_of, digests
from tests.support.batches import bare_batch, every_class
from tests.support.teachers import Slow, images, spoiled, with_terms

ROWS = {"det": np.array([0, 3]), "seg": np.array([1, 2, 3])}
IMAGES = images()


def batch_for(**distil: np.ndarray) -> TrainBatch:
    """The images, with rows that are distilled."""
    return bare_batch(IMAGES, distil={task: every_class(task, rows) for task, rows in distil.items()})


def assert_equal(answer: Answer, expected: Answer) -> None:
    np.testing.assert_array_equal(answer.digests, expected.digests)
    assert answer.packed == expected.packed
    for found, values in zip(arrays_of(answer.dense), arrays_of(expected.dense), strict=True):
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("packed", [False, True])
def test_the_pool_answers_as_inline_teachers_do(started_ray, specs, packed):
    torch.set_num_threads(1)
    specs = {task: with_terms(spec, packed=packed) for task, spec in specs.items()}
    inline = InlineTeachers({task: spec.load("cpu") for task, spec in specs.items()}).submit(batch_for(**ROWS))()
    pool = PoolClient(start_pool(TeachersConfig(), specs))
    answers = pool.submit(batch_for(**ROWS))()
    assert answers.keys() == inline.keys() == ROWS.keys()
    for task, answer in inline.items():
        assert_equal(answers[task], answer)
    assert pool.submit(batch_for(det=ROWS["det"], seg=ROWS["seg"][:0]))().keys() == {"det"}
    assert pool.submit(batch_for())() == {}


def test_only_rows_that_a_teacher_needs_are_sent_and_each_only_to_it(started_ray, monkeypatch):
    sent = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda array: sent.append(array) or put(array))
    pool = PoolClient(start_pool(TeachersConfig(), {"det": Slow(0), "seg": Slow(0)}))
    answers = pool.submit(batch_for(det=np.array([3]), seg=np.array([1])))()
    assert len(sent) == 1, "one copy for both teachers"
    assert sent[0].dtype == np.uint8
    np.testing.assert_array_equal(sent[0], IMAGES[[1, 3]])
    assert {task: answer.digests.tolist() for task, answer in answers.items()} == {
        "det": [digests(IMAGES)[3]],
        "seg": [digests(IMAGES)[1]],
    }
    assert pool.submit(batch_for(det=np.array([3])))()["det"].digests.tolist() == [digests(IMAGES)[3]]


def test_a_pool_finds_room_beside_the_placement_group_that_it_is_started_in(started_ray):
    """As in a trial of a study, whose group has room for nothing but the trial's function."""

    @ray.remote(num_cpus=0)
    def trial() -> list[int]:
        pool = PoolClient(start_pool(TeachersConfig(), {"det": Slow(0)}))
        return pool.submit(batch_for(det=ROWS["det"]))()["det"].digests.tolist()

    group = placement_group([{"CPU": 0.01}])
    try:
        within = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        answer = ray.get(trial.options(scheduling_strategy=within).remote(), timeout=60)
    finally:
        remove_placement_group(group)
    assert answer == digests(IMAGES[ROWS["det"]]).tolist()


def test_a_request_goes_to_the_replica_with_the_fewest_in_flight(started_ray):
    pool = PoolClient(start_pool(TeachersConfig(replicas=3, resources={"cpu": 0.1}), {"det": Slow(0.3)}))
    requests = [pool.submit(batch_for(det=ROWS["det"])) for _ in range(6)]
    assert [len(flight) for flight in pool.in_flight["det"]] == [2, 2, 2]
    answers = [collect() for collect in requests]
    pids = [int(answer["det"].dense) for answer in answers]
    assert sorted(pids.count(pid) for pid in set(pids)) == [2, 2, 2]
    assert len(set(pids[:3])) == 3
    # All are idle again: their turn comes one after another.
    later = [int(pool.submit(batch_for(det=ROWS["det"]))()["det"].dense) for _ in range(3)]
    assert len(set(later)) == 3
    assert not any(pool.in_flight["det"]), "what is answered is not in flight"


def figures_where(monitor: PoolMonitor, holds, seconds: float = 60) -> dict[str, float]:
    """The first figures of which this holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        figures = monitor.read()
        if figures and holds(figures):
            return figures
        time.sleep(0.05)
    raise TimeoutError(f"the last figures are {figures}")


def test_two_teachers_of_a_row_work_at_the_same_time(started_ray):
    pool = PoolClient(start_pool(TeachersConfig(resources={"cpu": 0.1}), {"det": Slow(5), "seg": Slow(5)}))
    monitor = PoolMonitor(pool.handles)
    assert monitor.read() == {}, "nothing is waited for"
    collect = pool.submit(batch_for(**ROWS))
    figures = figures_where(monitor, lambda figures: figures.get("teacher/det/queue") == 1)
    figures = figures_where(monitor, lambda figures: figures.get("teacher/seg/queue") == 1)
    assert figures["teacher/det/queue"] == 1, "asked both, and neither has answered"
    collect()
    figures = figures_where(monitor, lambda figures: figures["teacher/seg/queue"] == 0)
    assert figures["teacher/seg/replicas"] == 1
    assert figures["teacher/seg/latency_s"] >= 5
    assert figures["teacher/seg/images_per_s"] > 0


def test_a_killed_teacher_comes_back_and_answers(started_ray, specs):
    handles = start_pool(TeachersConfig(), {"det": specs["det"]})
    (actor,) = handles["det"]
    pool, monitor = PoolClient(handles), PoolMonitor(handles)
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    expected = pool.submit(batch_for(det=ROWS["det"]))()
    assert figures_where(monitor, bool)["teacher/det/restarts"] == 0
    os.kill(pid, signal.SIGKILL)
    requests = [pool.submit(batch_for(det=ROWS["det"])) for _ in range(5)]
    for collect in requests:
        assert_equal(collect()["det"], expected["det"])
    assert ray.get(actor.__ray_call__.remote(lambda _: os.getpid())) != pid
    figures_where(monitor, lambda figures: figures["teacher/det/restarts"] == 1)


def test_a_teacher_that_answers_with_nan_is_named(started_ray, specs, tmp_path):
    broken = spoiled(specs["det"], tmp_path)
    pool = PoolClient(start_pool(TeachersConfig(), {"det": broken}))
    with pytest.raises(UserError, match="it answers with NaN"):
        pool.submit(batch_for(det=ROWS["det"]))()


def test_a_named_pool_is_shared_and_outlives_its_runs(started_ray, specs):
    config = TeachersConfig(pool="shared", replicas=2, resources={"cpu": 0.1})
    # Two that start at once make one pool.
    found: list[dict] = []
    threads = [threading.Thread(target=lambda: found.append(start_pool(config, specs))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [[handle._actor_id for replicas in handles.values() for handle in replicas] for handles in found]
    assert ids[0] == ids[1]
    found.clear()
    rows = [row for row in pool_status() if row["pool"] == "shared"]
    assert [(row["task"], row["replica"], row["state"], row["restarts"]) for row in rows] == [
        *(("det", number, "ALIVE", 0) for number in (0, 1)),
        *(("seg", number, "ALIVE", 0) for number in (0, 1)),
    ]
    assert all(row["queue"] == 0 for row in rows)
    # A run that asks for fewer replicas uses all that are there.
    pool = PoolClient(start_pool(config.model_copy(update={"replicas": 1}), specs))
    assert len(pool.handles["det"]) == 2
    pool.submit(batch_for(**ROWS))()
    assert sum(row["images"] for row in pool_status()) == 5
    with pytest.raises(UserError, match="pool 'shared' serves a det teacher with another precision"):
        start_pool(config.model_copy(update={"replicas": 3}), {"det": with_terms(specs["det"], precision="bfloat16")})
    assert stop_pool("shared") == 4
    end = time.monotonic() + 30
    while any(row["pool"] == "shared" for row in pool_status()) and time.monotonic() < end:
        time.sleep(0.2)
    assert not [actor for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE]
    assert stop_pool("shared") == 0


@pytest.mark.slow
def test_the_figures_leave_ray_as_metrics(started_ray):
    pool = PoolClient(start_pool(TeachersConfig(resources={"cpu": 0.1}), {"det": Slow(0)}))
    pool.submit(batch_for(det=ROWS["det"], seg=ROWS["seg"][:0]))()
    wanted = {"multas_teacher_images", "multas_teacher_queue", "multas_teacher_latency_s", "multas_teacher_starts"}
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    end = time.monotonic() + 90
    missing = wanted
    while missing and time.monotonic() < end:
        time.sleep(1)
        text = urllib.request.urlopen(url).read().decode()
        missing = {name for name in wanted if name not in text}
    assert not missing
    images = [line for line in text.splitlines() if line.startswith("ray_multas_teacher_images") and '"det"' in line]
    assert 2 in [float(line.rsplit(" ", 1)[1]) for line in images]


@pytest.mark.slow
def test_all_replicas_killed_at_once_come_back(started_ray, specs):
    config = TeachersConfig(replicas=2, resources={"cpu": 0.1})
    handles = start_pool(config, specs)
    pool = PoolClient(handles)
    expected = pool.submit(batch_for(**ROWS))()
    requests = [pool.submit(batch_for(**ROWS)) for _ in range(6)]
    for replicas in handles.values():
        for handle in replicas:
            psutil.Process(ray.get(handle.__ray_call__.remote(lambda _: os.getpid()))).kill()
    requests += [pool.submit(batch_for(**ROWS)) for _ in range(6)]
    for collect in requests:
        answer = collect()
        for task in expected:
            assert_equal(answer[task], expected[task])
