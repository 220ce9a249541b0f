"""Batches with their soft targets."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from multas_ray.errors import RunError
from multas_ray.teacher import feed
from multas_ray.teacher.feed import StoredTargets, with_soft_targets
from multas_ray.teacher.teacher import Answer, digests
from tests.support.batches import bare_batch, every_class

ALL = every_class("seg", range(2))
PATIENCE = 60
"""Seconds after which what a test waits for has failed to come."""


class Clock:
    """What the feed measures its waits with, in seconds. It stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(feed, "perf_counter", lambda: clock())
    return clock


class Recorder:
    """Teachers that note what is asked of them."""

    def __init__(self) -> None:
        self.submitted = self.collected = self.most = 0

    def submit(self, batch):
        self.submitted += 1
        self.most = max(self.most, self.submitted - self.collected)

        def collect():
            self.collected += 1
            return {"seg": Answer(digests(batch.images), dense=batch.images)}

        return collect


class Busy(Recorder):
    """Teachers that take a second for an answer."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def submit(self, batch):
        collect = super().submit(batch)

        def answer():
            self.clock.now += 1
            return collect()

        return answer


def batches(count: int, before=lambda: None):
    """So many batches; the function is called before each of them is there."""
    for number in range(count):
        before()
        yield bare_batch(np.full((2, 3, 2, 2), number, np.uint8), number, distil={"seg": ALL})


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_requests_run_ahead_within_a_window_and_come_back_in_order(ahead):
    teachers = Recorder()
    fed = list(with_soft_targets(batches(10), teachers, ahead))
    assert [item.batch.part.step for item in fed] == list(range(10))
    assert all(item.soft["seg"].dense is item.batch.images for item in fed)
    assert teachers.most == ahead + 1


def test_the_next_batch_is_made_ready_during_a_step(clock):
    """While the training is at work, and asks for nothing, the feed makes a batch; what it takes is no wait."""
    permits, made = threading.Semaphore(2), threading.Semaphore(0)

    def make():
        assert permits.acquire(timeout=PATIENCE)
        clock.now += 3
        made.release()

    slow = with_soft_targets(batches(6, make), Recorder(), 1)
    # The first has its successor in the window.
    waits = [next(slow).data_wait]
    assert made.acquire(timeout=PATIENCE)
    assert made.acquire(timeout=PATIENCE)
    for _ in range(4):
        # The step: one batch more is made, of which nobody has asked.
        permits.release()
        assert made.acquire(timeout=PATIENCE), "the next batch is made only when it is asked for"
        waits.append(next(slow).data_wait)
    assert waits[1:] == [0] * 4


def test_waiting_for_data_is_told_apart_from_waiting_for_teachers(clock):
    def make():
        clock.now += 3

    fed = with_soft_targets(batches(3, make), Busy(clock), 0)
    assert [(item.data_wait, item.teacher_wait) for item in fed] == [(3, 1)] * 3


def test_a_wait_for_the_feeds_thread_is_shared_as_the_threads_own_time_was(clock, monkeypatch):
    permits, reads = threading.Semaphore(0), []

    def read():
        """The time; when the training begins to wait, which is its every other reading, the thread may go on."""
        now = clock.now
        if threading.current_thread() is threading.main_thread():
            if len(reads) % 2 == 0:
                # The first batch comes with its successor in the window.
                permits.release(1 if reads else 2)
            reads.append(now)
        return now

    def make():
        assert permits.acquire(timeout=PATIENCE)
        clock.now += 3

    monkeypatch.setattr(feed, "perf_counter", read)
    fed = with_soft_targets(batches(4, make), Busy(clock), 1)
    waits = [(item.data_wait, item.teacher_wait) for item, _ in zip(fed, range(3), strict=False)]
    assert waits == [(6, 1), (3, 1), (3, 1)]


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_goes_wrong_on_the_way_is_raised_where_the_batch_is_due(ahead):
    def broken():
        yield from batches(3)
        raise OSError("the shard is gone")

    fed = with_soft_targets(broken(), Recorder(), ahead)
    with pytest.raises(OSError, match="the shard is gone"):
        list(fed)


@pytest.mark.parametrize("answer", ["another image's", "one too few", "none"])
def test_targets_of_other_pixels_are_not_trained_on(answer):
    class Wrong(Recorder):
        def submit(self, batch):
            right = digests(batch.images)
            wrong = {"another image's": digests(batch.images + 1), "one too few": right[:1]}
            return lambda: {"seg": Answer(wrong[answer])} if answer in wrong else {}

    fed = with_soft_targets(batches(1), Wrong(), 0)
    with pytest.raises(RunError, match="step 0: soft targets of seg are not of this batch's pixels"):
        next(fed)


def test_stored_targets_come_with_the_batch():
    answer = Answer(np.zeros(2, np.uint64), packed=(b"", b""))
    batch = bare_batch(np.zeros((2, 3, 2, 2), np.uint8), distil={"seg": ALL, "det": every_class("det", [])})
    batch = replace(batch, soft={"seg": answer, "det": Answer(np.zeros(0, np.uint64), packed=())})
    assert StoredTargets().submit(batch)() == {"seg": answer}
