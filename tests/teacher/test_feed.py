"""Batches with their soft targets."""

import time

import numpy as np
import pytest

from multas_ray.teacher.feed import StoredTargets, with_soft_targets
from multas_ray.teacher.teacher import digests

ALL = np.arange(2)


class Recorder:
    """Teachers that note what is asked of them."""

    def __init__(self) -> None:
        self.submitted = self.collected = self.most = 0

    def submit(self, batch, rows):
        self.submitted += 1
        self.most = max(self.most, self.submitted - self.collected)

        def collect():
            self.collected += 1
            return {"seg": batch["images"], "seg.digest": digests(batch["images"])}

        return collect


def batches(count: int, delay: float = 0.0):
    for number in range(count):
        time.sleep(delay)
        yield {"step": np.asarray(number), "images": np.full((2, 3, 2, 2), number, np.uint8)}


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_requests_run_ahead_within_a_window_and_come_back_in_order(ahead):
    teachers = Recorder()
    fed = list(with_soft_targets(batches(10), teachers, lambda batch: {"seg": ALL}, ahead))
    assert [int(item.batch["step"]) for item in fed] == list(range(10))
    assert all(item.soft["seg"] is item.batch["images"] for item in fed)
    assert teachers.most == ahead + 1


def test_the_next_batch_is_made_ready_during_a_step():
    slow = with_soft_targets(batches(4, delay=0.1), Recorder(), lambda batch: {"seg": ALL}, 1)
    waits = []
    for fed in slow:
        waits.append(fed.data_wait)
        time.sleep(0.15)
    assert waits[0] >= 0.1
    assert max(waits[1:]) < 0.05


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_goes_wrong_on_the_way_is_raised_where_the_batch_is_due(ahead):
    def broken():
        yield from batches(3)
        raise OSError("the shard is gone")

    feed = with_soft_targets(broken(), Recorder(), lambda batch: {}, ahead)
    with pytest.raises(OSError, match="the shard is gone"):
        list(feed)


def test_waiting_for_data_is_told_apart_from_waiting_for_teachers():
    fed = list(with_soft_targets(batches(3, delay=0.05), Recorder(), lambda batch: {}, 0))
    assert all(item.data_wait >= 0.05 > item.teacher_wait for item in fed)
    fed = list(with_soft_targets(batches(3, delay=0.05), Recorder(), lambda batch: {}, 1))
    assert sum(item.data_wait for item in fed) > 0.1 > 10 * sum(item.teacher_wait for item in fed)


@pytest.mark.parametrize("answer", ["another image's", "one too few", "none"])
def test_targets_of_other_pixels_are_not_trained_on(answer):
    class Wrong(Recorder):
        def submit(self, batch, rows):
            right = digests(batch["images"])
            wrong = {"another image's": digests(batch["images"] + 1), "one too few": right[:1]}
            return lambda: {"seg.digest": wrong[answer]} if answer in wrong else {}

    feed = with_soft_targets(batches(1), Wrong(), lambda batch: {"seg": ALL}, 0)
    with pytest.raises(RuntimeError, match="step 0: soft targets of seg are not of this batch's pixels"):
        next(feed)


def test_stored_targets_come_with_the_batch():
    batch = {"images": np.zeros((2, 3, 2, 2), np.uint8), "seg.packed": ALL, "seg.ends": ALL, "det.packed": ALL}
    own = StoredTargets().submit(batch, {"seg": ALL, "det": ALL[:0]})()
    assert own.keys() == {"seg.packed", "seg.ends"}
