"""Rows by runs are those that a list of all rows would hold."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from multas_ray.config import TASK_MASKS, TaskMask
from multas_ray.data.footer import EVERY_KIND
from multas_ray.data.row_sets import RowSet
from tests.support.indexes import index_of

kinds = st.lists(st.integers(0, len(EVERY_KIND) - 1), max_size=5)
layouts = st.lists(st.lists(kinds, max_size=4), max_size=4)
"""Kinds of rows, by file and row group; files and row groups may be empty."""
masks = st.sets(st.sampled_from(TASK_MASKS))


def rows_of(layout: Sequence[Sequence[Sequence[int]]]) -> list[tuple[int, int, int, int]]:
    """File, row group, place and kind of every row."""
    return [
        (file, group, place, kind)
        for file, groups in enumerate(layout)
        for group, kinds in enumerate(groups)
        for place, kind in enumerate(kinds)
    ]


@given(layouts, masks)
def test_rows_of_task_masks_and_their_places(layout: list[list[list[int]]], chosen: set[TaskMask]) -> None:
    index = index_of(layout)
    expected = [row for row, (_, _, _, kind) in enumerate(rows_of(layout)) if TASK_MASKS[kind & 3] in chosen]
    rows = index.rows(chosen)
    assert rows.at(np.arange(len(rows))).tolist() == expected
    assert rows.at(np.arange(len(rows))[::-1]).tolist() == expected[::-1]
    below = [sum(each < row for each in expected) for row in range(len(index) + 1)]
    assert rows.below(np.arange(len(index) + 1)).tolist() == below


@given(layouts, st.sets(st.integers(0, len(EVERY_KIND) - 1)))
def test_rows_of_kinds_are_runs_as_long_as_they_can_be(layout: list[list[list[int]]], chosen: set[int]) -> None:
    index = index_of(layout)
    rows = index.rows_of(np.isin(EVERY_KIND, list(chosen)))
    expected = [row for row, (_, _, _, kind) in enumerate(rows_of(layout)) if kind in chosen]
    assert rows.at(np.arange(len(rows))).tolist() == expected
    assert rows.starts.tolist() == [row for row in expected if row - 1 not in expected]


@given(layouts, st.randoms())
def test_where_rows_are_and_of_what_kind(layout: list[list[list[int]]], random) -> None:
    index, every = index_of(layout), rows_of(layout)
    asked = random.sample(range(len(every)), random.randint(0, len(every)))
    assert len(index) == len(every)
    for found, rows in ((index, asked), (index.take(asked), list(range(len(asked))))):
        places = found.locate(np.array(rows, np.int64))
        files = [found.files[number] for number in places[0]]
        expected = [every[row] for row in asked]
        assert files == [f"train/{file}.parquet" for file, _, _, _ in expected]
        assert [column.tolist() for column in places[1:]] == [[row[part] for row in expected] for part in (1, 2)]
        assert found.kind(np.array(rows, np.int64)).tolist() == [kind for *_, kind in expected]
        assert found.task_mask(np.array(rows, np.int64)).tolist() == [kind & 3 for *_, kind in expected]
    assert len(index.take(asked).files) <= len(asked), "the few rows that a worker draws do not bring all names along"
    blocks = sorted({(file, group) for file, group, _, _ in every})
    expected_blocks = [blocks.index(every[row][:2]) for row in asked]
    assert index.block(np.array(asked, np.int64)).tolist() == expected_blocks


def test_more_rows_than_32_bits_count() -> None:
    billions = RowSet(np.array([0, 5 * 10**9]), np.array([0, 3 * 10**9, 7 * 10**9]))
    assert len(billions) == 7 * 10**9
    assert billions.at(np.array([3 * 10**9 - 1, 3 * 10**9, 7 * 10**9 - 1])).tolist() == [
        3 * 10**9 - 1,
        5 * 10**9,
        9 * 10**9 - 1,
    ]
    assert billions.below(np.array([4 * 10**9, 6 * 10**9])).tolist() == [3 * 10**9, 4 * 10**9]
