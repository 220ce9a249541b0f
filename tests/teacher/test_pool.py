"""Teachers inside the worker and in the pool."""

import os
import signal
import time

import numpy as np
import pytest
import ray
import torch

from multas_ray.config import TeachersConfig
from multas_ray.data import scenes
from multas_ray.errors import UserError
from multas_ray.teacher.pool import InlineTeachers, PoolClient, start_pool, with_soft_targets
from multas_ray.teacher.teacher import Teacher

CLASSES = {"det": list(scenes.CLASSES), "seg": ["background", *scenes.CLASSES]}


@pytest.fixture
def teachers(random_teachers: dict) -> TeachersConfig:
    return TeachersConfig.model_validate(random_teachers)


def images(rows: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 3, 64, 64), dtype=np.uint8)


ROWS = {"det": np.array([0, 3]), "seg": np.array([1, 2, 3])}


def test_soft_targets_are_the_network_s_outputs(teachers):
    teacher = Teacher("det", teachers.det.checkpoint, CLASSES["det"])
    soft = teacher(images())
    with torch.no_grad():
        out = teacher.network(torch.tensor(images()))
    assert soft.keys() == {"cls", "box"}
    np.testing.assert_allclose(soft["cls"], out["cls"].numpy(), rtol=2e-3, atol=1e-3)
    assert soft["box"].dtype == np.float16
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


@pytest.mark.parametrize(
    ("task", "of", "classes", "words"),
    [
        ("det", "det", ["cat", "dog"], "its classes are circle, .*; the data set's are cat, dog"),
        ("seg", "det", CLASSES["seg"], "trained for det, not seg"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teachers, task, of, classes, words):
    with pytest.raises(UserError, match=words):
        Teacher(task, teachers.of(of).checkpoint, classes)


def test_the_pool_answers_as_inline_teachers_do(started_ray, teachers):
    torch.set_num_threads(1)
    inline = InlineTeachers(teachers, ["det", "seg"], CLASSES, "cpu").submit(images(), ROWS)()
    pool = PoolClient(start_pool(teachers, ["det", "seg"], CLASSES))
    answers = pool.submit(images(), ROWS)()
    assert answers.keys() == inline.keys() == {"cls", "box", "seg"}
    for name, value in inline.items():
        np.testing.assert_array_equal(answers[name], value)
    assert pool.submit(images(), {"det": ROWS["det"], "seg": ROWS["seg"][:0]})().keys() == {"cls", "box"}
    assert pool.submit(images(), {})() == {}


def test_a_killed_teacher_comes_back_and_answers(started_ray, teachers):
    handles = start_pool(teachers, ["det"], CLASSES)
    (actor,) = handles["det"]
    pool = PoolClient(handles)
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    expected = pool.submit(images(), {"det": ROWS["det"]})()
    os.kill(pid, signal.SIGKILL)
    requests = [pool.submit(images(), {"det": ROWS["det"]}) for _ in range(5)]
    for collect in requests:
        np.testing.assert_array_equal(collect()["cls"], expected["cls"])
    assert ray.get(actor.__ray_call__.remote(lambda _: os.getpid())) != pid
    assert pool.in_flight["det"] == [0]


class Recorder:
    """Teachers that note what is asked of them."""

    def __init__(self) -> None:
        self.submitted = self.collected = self.most = 0

    def submit(self, images, rows):
        self.submitted += 1
        self.most = max(self.most, self.submitted - self.collected)

        def collect():
            self.collected += 1
            return {"seg": images}

        return collect


def batches(count: int, delay: float = 0.0):
    for number in range(count):
        time.sleep(delay)
        yield {"images": np.full((1,), number)}


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_requests_run_ahead_within_a_window_and_come_back_in_order(ahead):
    teachers = Recorder()
    fed = list(with_soft_targets(batches(10), teachers, lambda batch: {"seg": np.arange(1)}, ahead))
    assert [int(item.batch["images"][0]) for item in fed] == list(range(10))
    assert all(item.soft["seg"] is item.batch["images"] for item in fed)
    assert teachers.most == ahead + 1


def test_waiting_for_data_is_told_apart_from_waiting_for_teachers():
    fed = list(with_soft_targets(batches(3, delay=0.05), Recorder(), lambda batch: {}, 0))
    assert all(item.data_wait >= 0.05 > item.teacher_wait for item in fed)
