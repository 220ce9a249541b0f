"""The stream as workers get it: through Ray Data and streaming_split."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray

from multas_ray.config import AugmentConfig, Resources
from multas_ray.data.collate import make_batch, original_masks
from multas_ray.data.index import read_index
from multas_ray.data.packing import pack, unpack
from multas_ray.data.plan import EvaluationPlan, Plan, lay_plan
from multas_ray.data.stream import PlannedData, Source, read_batches, stream

STEPS = 56


@pytest.fixture(scope="module")
def plan(scenes_path: str) -> Plan:
    index = read_index(scenes_path, "train")
    usable = ("none", "det", "seg", "both")
    return lay_plan(index, usable=usable, mixing=None, batch_size=8, steps=STEPS, seed=3, sizes=(32, 64), window=4)


def collect(plan: Plan | EvaluationPlan, workers: int, start: int = 0, augment: AugmentConfig | None = None) -> list:
    """The batches of every worker, as `streaming_split` hands them out."""
    dataset = stream(plan, workers, start=start, augment=augment, parallel=2, resources=Resources(cpu=0.25))
    dataset.context.execution_options = ray.data.ExecutionOptions(preserve_order=True)
    splits = dataset.streaming_split(workers, equal=True)

    def copies(split):
        return [{name: array.copy() for name, array in batch.items()} for batch in read_batches(split)]

    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(copies, splits))


def by_row(batches: list) -> dict:
    """Pixels, boxes and task mask of every (step, epoch, row)."""
    return {
        (int(batch["step"]), int(batch["epochs"][number]), int(row)): (
            batch["images"][number].tobytes(),
            batch["boxes"][number][batch["labels"][number] >= 0].tobytes(),
            bool(batch["has_det"][number]),
            bool(batch["has_seg"][number]),
        )
        for batch in batches
        for number, row in enumerate(batch["rows"])
    }


def test_any_number_of_workers_gets_the_same_rows_boxes_and_pixels(started_ray, plan):
    one = collect(plan, 1, augment=AugmentConfig())[0]
    expected = by_row(one)
    assert len(expected) == STEPS * 8
    for workers in (2, 4):
        shards = collect(plan, workers, augment=AugmentConfig())
        for rank, shard in enumerate(shards):
            assert [int(batch["step"]) for batch in shard] == list(range(STEPS))
            assert {int(batch["rank"]) for batch in shard} == {rank}
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
    rows = np.concatenate([batch["rows"] for shard in shards for batch in shard])
    np.testing.assert_array_equal(np.sort(rows), np.arange(11))
    for batch in shards[1]:
        for number, mask in enumerate(original_masks(batch)):
            assert mask.shape == (64, 64)
            x1, y1, x2, y2 = batch["boxes"][number][0].astype(int)
            assert (mask[y1:y2, x1:x2] == 1 + batch["labels"][number][0]).any()


def test_rows_without_a_task_carry_nothing_of_it(plan):
    batch = make_batch(plan.index, plan.part(0, 0, 1), AugmentConfig())
    assert not batch["has_det"].all()
    assert (batch["labels"][~batch["has_det"]] == -1).all()
    assert len(batch["masks"]) == batch["has_seg"].sum()


def test_a_packed_batch_keeps_dtypes_shapes_and_shares_memory():
    arrays = {
        "scalar": np.asarray(3),
        "empty": np.zeros((0, 4), np.float32),
        "ids": np.asarray([b"a", b"longer"]),
        "pixels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 0, 2),
    }
    other = {"pixels": np.ones((1, 2), np.float32)}
    back, back_other = unpack(pack([arrays, other]))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert not back["pixels"].flags.owndata
    assert back_other.keys() == other.keys()
    np.testing.assert_array_equal(back_other["pixels"], other["pixels"])


def test_a_packed_batch_is_freed():
    array = np.zeros(10_000)
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
    (shard,) = config.configure(
        {"train": Source(long), "val": Source(EvaluationPlan(read_index(scenes_path, "val"), batch_size=4, size=32))}, 1
    )
    training = read_batches(shard["train"])
    next(training)
    rows = np.concatenate([batch["rows"] for batch in read_batches(shard["val"])])
    np.testing.assert_array_equal(np.sort(rows), np.arange(11))
    training.close()
    for other in others:
        ray.kill(other)
