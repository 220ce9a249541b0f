"""The stream as workers get it: through Ray Data and streaming_split."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import ray

from multas_ray.config import AugmentConfig, Resources
from multas_ray.data.batch import Failure, Some, TrainBatch
from multas_ray.data.collate import make_train_batch
from multas_ray.data.footer import annotated
from multas_ray.data.index import read_index
from multas_ray.data.packing import LARGE, pack, unpack
from multas_ray.data.plan import EvaluationPlan, Plan, lay_plan
from multas_ray.data.stream import PlannedData, PlannedStream, read_batches, stream
from multas_ray.tasks.detection.rows import UnitBoxes
from tests.support.batches import batch_of

STEPS = 56


@pytest.fixture(scope="module")
def plan(scenes_path: str) -> Plan:
    index = read_index(scenes_path, "train")
    usable = ("none", "det", "seg", "both")
    return lay_plan(index, usable=usable, mixing=None, batch_size=8, steps=STEPS, seed=3, sizes=(32, 64), window=4)


def collect(plan: Plan | EvaluationPlan, workers: int, start: int = 0, augment: AugmentConfig | None = None) -> list:
    """The batches of every worker, as `streaming_split` hands them out."""
    source = PlannedStream(plan, lambda: start, augment)
    dataset = stream(source, workers, parallel=2, resources=Resources(cpu=0.25))
    dataset.context.execution_options = ray.data.ExecutionOptions(preserve_order=True)
    splits = dataset.streaming_split(workers, equal=True)

    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(lambda split: copy.deepcopy(list(read_batches(split))), splits))


def by_row(batches: list[TrainBatch]) -> dict:
    """Pixels, boxes and masks of every (step, epoch, row)."""

    def annotation(some: Some, number: int) -> bytes | None:
        if number not in some.rows:
            return None
        values = some.at(np.array([number]))
        return (values.boxes[values.labels >= 0] if isinstance(values, UnitBoxes) else values).tobytes()

    return {
        (batch.part.step, int(batch.part.epochs[number]), int(row)): (
            batch.images[number].tobytes(),
            *(annotation(some, number) for some in batch.truth.values()),
        )
        for batch in batches
        for number, row in enumerate(batch.part.rows)
    }


def test_any_number_of_workers_gets_the_same_rows_boxes_and_pixels(started_ray, plan):
    one = collect(plan, 1, augment=AugmentConfig())[0]
    expected = by_row(one)
    assert len(expected) == STEPS * 8
    for workers in (2, 4):
        shards = collect(plan, workers, augment=AugmentConfig())
        for rank, shard in enumerate(shards):
            assert [batch.part.step for batch in shard] == list(range(STEPS))
            assert {batch.part.rank for batch in shard} == {rank}
        assert by_row([batch for shard in shards for batch in shard]) == expected


def test_a_stream_started_later_is_the_rest_of_the_stream(started_ray, plan):
    whole = by_row(collect(plan, 1, augment=AugmentConfig())[0])
    shards = collect(plan, 2, start=11, augment=AugmentConfig())
    rest = by_row([batch for shard in shards for batch in shard])
    assert rest == {key: value for key, value in whole.items() if key[0] >= 11}


def test_evaluation_gets_every_row_once_in_original_pixels(started_ray, scenes_path):
    plan = EvaluationPlan(read_index(scenes_path, "val"), batch_size=4, size=32)
    shards = collect(plan, 2)
    assert [len(shard) for shard in shards] == [3, 3], "each worker gets as many batches, some of them shorter"
    rows = np.concatenate([batch.part.rows for shard in shards for batch in shard])
    np.testing.assert_array_equal(np.sort(rows), np.arange(11))
    for batch in shards[1]:
        for boxes, mask in zip(batch.truth["det"].values, batch.truth["seg"].values, strict=True):
            assert mask.shape == (64, 64)
            x1, y1, x2, y2 = boxes.boxes[0].astype(int)
            assert (mask[y1:y2, x1:x2] == 1 + boxes.labels[0]).any()


def test_rows_without_a_task_carry_nothing_of_it(plan):
    part = plan.part(0, 0, 1)
    batch = make_train_batch(plan.index, part, AugmentConfig())
    for task, some in batch.truth.items():
        np.testing.assert_array_equal(some.rows, np.flatnonzero(annotated(plan.index.kind(part.rows), task)))
        assert 0 < len(some.rows) < len(batch.ids)
        counts = {len(values) for values in (some.values if isinstance(some.values, tuple) else [some.values])}
        assert counts == {len(some.rows)}


def test_a_packed_batch_is_whole_and_shares_memory():
    large = np.arange(6 * LARGE, dtype=np.uint8).reshape(3, 2, -1)
    batch = batch_of(["det", "seg", "both"])
    batch = replace(batch, images=large.copy(), soft={"seg": (b"packed", large)})
    [back, failure] = unpack(pack([batch, Failure("gone")]))
    assert failure == Failure("gone")
    for array, found in ((batch.images, back.images), (large, back.soft["seg"][1])):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert np.shares_memory(found, array)
    assert back.ids == batch.ids
    for task, some in batch.truth.items():
        np.testing.assert_array_equal(back.truth[task].rows, some.rows)
    np.testing.assert_array_equal(back.truth["det"].values.boxes, batch.truth["det"].values.boxes)


def test_something_of_some_rows_is_looked_up_by_row():
    some = Some(np.array([1, 4, 6]), UnitBoxes(np.eye(3), np.arange(3), np.zeros(3, bool)))
    np.testing.assert_array_equal(some.at(np.array([4, 6])).labels, [1, 2])
    assert len(some.at(np.zeros(0, np.int64)).boxes) == 0
    assert Some(np.array([1, 4]), ("a", "b")).at(np.array([4])) == ("b",)
    for wrong in ([0], [5], [7], [4, 7]):
        with pytest.raises(LookupError, match="there is something of"):
            some.at(np.array(wrong))


def test_a_packed_batch_is_freed():
    array = np.zeros(LARGE)
    alive = weakref.ref(array)
    table = pack([{"images": array}])
    del array
    assert unpack(table)[0]["images"].sum() == 0
    del table
    gc.collect()
    assert alive() is None


def test_an_evaluation_finds_room_while_the_training_stream_holds_all_cpus(started_ray, scenes_path):
    """The training stream is longer than what is listed ahead, so that the task which lists it is there too."""

    @ray.remote
    class Other:
        def ready(self) -> None: ...

    index = read_index(scenes_path, "train")
    masks = ("none", "det", "seg", "both")
    long = lay_plan(index, usable=masks, mixing=None, batch_size=8, steps=100_000, seed=3, sizes=(32,), window=4)
    config = PlannedData(parallel=2, resources=Resources(cpu=0.25))
    others = [Other.options(num_cpus=share).remote() for share in [1] * 7 + [0.5]]
    ray.get([other.ready.remote() for other in others])
    validation = EvaluationPlan(read_index(scenes_path, "val"), batch_size=4, size=32)
    (shard,) = config.configure(
        {"train": PlannedStream(long, augment=AugmentConfig()), "val": PlannedStream(validation)}, 1
    )
    training = read_batches(shard["train"])
    next(training)
    rows = np.concatenate([batch.part.rows for batch in read_batches(shard["val"])])
    np.testing.assert_array_equal(np.sort(rows), np.arange(11))
    training.close()
    for other in others:
        ray.kill(other)
