import pickle

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from multas_ray.data.index import Index, read_index
from multas_ray.data.plan import EvaluationPlan, Plan, Replay, lay_plan, mix
from multas_ray.errors import UserError
from tests.support.indexes import index_of as laid_out

ALL = ("none", "det", "seg", "both")


def index_of(rows: int, group_size: int = 8, files: int = 2) -> Index:
    """Rows of all task masks in turns, as they lie in files of others."""
    per_file = -(-rows // files)
    masks = np.arange(rows) % 4
    of_files = [masks[first : first + per_file] for first in range(0, rows, per_file)]
    return laid_out(
        [[of[first : first + group_size].tolist() for first in range(0, len(of), group_size)] for of in of_files]
    )


def plan_of(index: Index, *, batch_size: int = 10, steps: int = 30, seed: int = 0, **changes) -> Plan:
    settings = {"usable": ALL, "mixing": None, "sizes": (64,), "window": 3} | changes
    return lay_plan(index, batch_size=batch_size, steps=steps, seed=seed, **settings)


@pytest.mark.parametrize("mixing", [None, {"det": 3, "both": 6, "none": 1}])
def test_a_batch_is_the_same_for_any_number_of_workers(mixing):
    plan = plan_of(index_of(101), mixing=mixing)
    for step in range(25):
        whole = plan.part(step, 0, 1)
        for workers in (2, 3, 4, 10):
            parts = [plan.part(step, rank, workers) for rank in range(workers)]
            together = sorted(
                zip(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("rows", "seeds")), strict=True)
            )
            assert together == sorted(zip(whole.rows, whole.seeds, strict=True))
            assert {part.size for part in parts} == {whole.size}
            assert max(len(p.rows) for p in parts) - min(len(p.rows) for p in parts) <= 1


def test_every_epoch_holds_every_row_once():
    index = index_of(101)
    plan = plan_of(index, steps=60)
    parts = [plan.part(step, 0, 1) for step in range(60)]
    rows, epochs = np.concatenate([p.rows for p in parts]), np.concatenate([p.epochs for p in parts])
    orders = [rows[epochs == epoch] for epoch in range(5)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(101))
    assert not np.array_equal(orders[0], orders[1])


def test_a_replaying_plan_takes_the_stored_views_in_turns():
    index = index_of(40)
    own, replaying = plan_of(index, steps=40), plan_of(index, steps=40, replay=Replay(seed=9, views=3))
    for step in range(40):
        part, like = replaying.part(step, 0, 1), own.part(step, 0, 1)
        np.testing.assert_array_equal(part.rows, like.rows)
        np.testing.assert_array_equal(part.views, part.epochs % 3)
        np.testing.assert_array_equal(part.seeds, mix(9, part.views, part.rows))
        np.testing.assert_array_equal(like.views, like.epochs)
    assert pickle.loads(pickle.dumps(replaying)).part(7, 0, 1).seeds[0] == replaying.part(7, 0, 1).seeds[0]


def test_every_row_has_another_seed_in_every_epoch():
    plan = plan_of(index_of(40), steps=40)
    seeds = np.concatenate([plan.part(step, 0, 1).seeds for step in range(40)])
    assert len(np.unique(seeds)) == len(seeds)


def test_a_step_does_not_depend_on_the_steps_before():
    index = index_of(77)
    used = plan_of(index)
    for step in range(30):
        used.part(step, 0, 1)
    fresh = pickle.loads(pickle.dumps(used))
    for step in (29, 3, 17):
        np.testing.assert_array_equal(used.part(step, 1, 2).rows, fresh.part(step, 1, 2).rows)
        np.testing.assert_array_equal(used.part(step, 1, 2).seeds, fresh.part(step, 1, 2).seeds)


def test_quotas_hold_in_every_batch():
    index = index_of(61)
    plan = plan_of(index, mixing={"det": 4, "seg": 6, "both": 0})
    for step in range(30):
        masks = index.task_mask(plan.part(step, 0, 1).rows)
        assert np.bincount(masks, minlength=4).tolist() == [0, 4, 6, 0]


def test_reads_stay_within_a_window_of_row_groups():
    index = index_of(384, group_size=8, files=4)
    plan = plan_of(index, window=3, batch_size=8)
    order = np.concatenate([plan.part(step, 0, 1).rows for step in range(48)])
    for start in range(0, 384, 24):
        assert len(np.unique(index.block(order[start : start + 24]))) == 3
    assert len(np.unique(index.block(order[:24]) // 12)) > 1, "row groups are shuffled over all files"


def test_rows_that_no_loss_can_use_are_left_out():
    index = index_of(64)
    plan = plan_of(index, usable=("det", "both"))
    rows = np.concatenate([plan.part(step, 0, 1).rows for step in range(10)])
    assert set(index.task_mask(rows)) == {1, 3}


def rows_by_row(plan: Plan, masks: list[set[int]], step: int, rank: int, workers: int) -> list[tuple[int, int]]:
    """Rows and epochs of a part, from lists of all rows: the definition of a plan."""
    index, found, before = plan.index, [], 0
    every = np.arange(len(index))
    for number, (group, wanted) in enumerate(zip(plan.groups, masks, strict=True)):
        rows = every[np.isin(index.task_mask(every), list(wanted))]
        turns = [(before + place) % workers for place in range(group.quota)]
        first = step * group.quota + sum(turn < rank for turn in turns)
        for position in range(first, first + turns.count(rank)):
            epoch, place = divmod(position, len(rows))
            random = np.random.default_rng((plan.seed, number, epoch))
            _, block = np.unique(index.block(rows), return_inverse=True)
            window = random.permutation(block.max() + 1)[block] // plan.window
            found.append((int(rows[np.lexsort((random.random(len(rows)), window))][place]), epoch))
        before += group.quota
    return found


@given(
    layout=st.lists(st.lists(st.lists(st.integers(0, 15), max_size=5), max_size=4), min_size=1, max_size=3),
    quotas=st.dictionaries(st.sampled_from(ALL), st.integers(1, 5), min_size=1),
    natural=st.booleans(),
    window=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 6),
    workers=st.integers(1, 3),
)
def test_a_plan_of_runs_is_that_of_single_rows(layout, quotas, natural, window, seed, step, workers):
    index = laid_out(layout)
    masks = [{ALL.index(mask)} for mask in ALL if mask in quotas]
    masks = [set.union(*masks)] if natural else masks
    present = {kind & 3 for of in layout for kinds in of for kind in kinds}
    assume(all(wanted & present for wanted in masks))
    settings = {"usable": tuple(quotas), "mixing": None if natural else quotas, "batch_size": sum(quotas.values())}
    plan = plan_of(index, window=window, seed=seed, **settings)
    for rank in range(workers):
        part = plan.part(step, rank, workers)
        assert list(zip(part.rows, part.epochs, strict=True)) == rows_by_row(plan, masks, step, rank, workers)
        np.testing.assert_array_equal(part.seeds, mix(seed, part.epochs, part.rows))


@pytest.mark.parametrize("window", [1, 3, 100])
def test_the_order_is_a_shuffle_of_row_groups_and_then_of_rows_in_windows(window):
    """The definition, on the whole data set at once."""
    index = index_of(101)
    plan = plan_of(index, usable=("det", "both", "none"), window=window, steps=30, seed=5)
    rows = np.concatenate([plan.part(step, 0, 1).rows for step in range(20)])
    chosen = index.rows(("det", "both", "none"))
    usable = chosen.at(np.arange(len(chosen)))
    for epoch in range(2):
        random = np.random.default_rng((5, 0, epoch))
        _, block = np.unique(index.block(usable), return_inverse=True)
        place = random.permutation(block.max() + 1)[block]
        expected = usable[np.lexsort((random.random(len(usable)), place // window))]
        np.testing.assert_array_equal(rows[epoch * len(usable) :][: len(usable)], expected)


def test_a_worker_reads_rows_that_stand_together():
    index = index_of(4096, group_size=8)
    plan = plan_of(index, window=1, batch_size=64)
    for rank in range(4):
        assert len(np.unique(index.block(plan.part(0, rank, 4).rows))) <= 3, "16 rows of one or two row groups"


def test_all_sizes_come_up():
    plan = plan_of(index_of(64), sizes=(64, 96, 128), steps=60)
    sizes = [plan.part(step, 0, 1).size for step in range(60)]
    assert {sizes.count(size) > 8 for size in (64, 96, 128)} == {True}


def test_the_last_steps_have_the_last_size():
    plan = plan_of(index_of(64), sizes=(64, 128, 96), steps=60, multi_scale_until=0.8)
    for kept in (plan, pickle.loads(pickle.dumps(plan))):
        sizes = [kept.part(step, 0, 1).size for step in range(60)]
        assert set(sizes[:48]) == {64, 96, 128}
        assert set(sizes[48:]) == {96}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixing": {"seg": 10}, "usable": ("det",)}, "data.mixing.seg"),
        ({"usable": ()}, "no row is of use"),
    ],
)
def test_a_plan_without_rows_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        plan_of(index_of(64), **changes)


def test_evaluation_covers_every_row_once():
    index = index_of(23)
    plan = EvaluationPlan(index, batch_size=10, size=64)
    for workers in (1, 2, 4):
        rows = [plan.part(step, rank, workers).rows for step in range(plan.steps) for rank in range(workers)]
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(23))


def test_mix_spreads_neighbours():
    values = mix(0, np.arange(1000), 1)
    assert len(np.unique(values)) == 1000
    assert 450 < (values >> np.uint64(63)).sum() < 550


def test_index_of_a_real_file(scenes_path):
    index = read_index(scenes_path, "train")
    assert [len(index.rows([mask])) for mask in ("det", "seg", "both", "none")] == [13, 13, 12, 12]
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        read_index(scenes_path, "test")
