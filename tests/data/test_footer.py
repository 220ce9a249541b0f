"""Kinds of rows: what a footer states is what the columns say, and it is checked."""

import hashlib
import io
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multas_ray.config import TASK_MASKS
from multas_ray.data import index as index_module
from multas_ray.data.footer import (
    EVERY_KIND,
    KEY,
    annotated,
    counted_runs,
    kinds_of,
    partly_annotated,
    runs,
    stated_runs,
    to_metadata,
)
from multas_ray.data.index import read_index
from multas_ray.data.read import read_row
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from tests.support.shards import row, table_of, write_set

DET, SEG, BOTH = {"has_seg": False, "mask": None}, {"has_det": False}, {}


def shard_of(groups: Sequence[pa.Table], metadata: dict[bytes, bytes] | None, **options: Any) -> bytes:
    """A Parquet file of these row groups, whose metadata is added at its end, as a writer does."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, groups[0].schema, **options) as writer:
        for group in groups:
            writer.write_table(group)
        if metadata is not None:
            writer.add_key_value_metadata(metadata)
    return buffer.getvalue()


def opened(data: bytes) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(data))


kinds = st.lists(st.integers(0, len(EVERY_KIND) - 1), max_size=6).map(lambda values: np.array(values, np.uint8))


def table_of_kinds(kinds: np.ndarray) -> pa.Table:
    """The columns that tell the kinds of rows."""
    columns = {
        "has_det": pa.array((kinds & 1).astype(bool)),
        "has_seg": pa.array((kinds & 2).astype(bool)),
        "det_unlabelled": pa.array([[7] if kind & 4 else [] for kind in kinds.tolist()], pa.list_(pa.int32())),
        "seg_unlabelled": pa.array([[0, 1] if kind & 8 else None for kind in kinds.tolist()], pa.list_(pa.int32())),
    }
    return pa.table(columns)


@given(st.lists(kinds, min_size=1, max_size=4))
def test_what_is_stated_is_what_the_columns_say(groups: list[np.ndarray]) -> None:
    tables = [table_of_kinds(group) for group in groups]
    stated = stated_runs(opened(shard_of(tables, to_metadata([runs(group) for group in groups]))))
    assert [kind for kind, count in stated for _ in range(count)] == np.concatenate(groups).tolist()
    silent = opened(shard_of(tables, None))
    assert stated_runs(silent) is None
    counted = counted_runs(silent)
    assert [kind for kind, count in counted for _ in range(count)] == np.concatenate(groups).tolist()
    assert all(a != b for (a, _), (b, _) in pairwise(counted))


def test_the_bits_of_a_kind() -> None:
    assert [TASK_MASKS[kind & 3] for kind in EVERY_KIND.tolist()] == ["none", "det", "seg", "both"] * 4
    assert np.flatnonzero(annotated(EVERY_KIND, "seg")).tolist() == [2, 3, 6, 7, 10, 11, 14, 15]
    assert np.flatnonzero(partly_annotated(EVERY_KIND, "det")).tolist() == [5, 7, 13, 15]
    assert np.flatnonzero(partly_annotated(EVERY_KIND, "seg")).tolist() == [10, 11, 14, 15]
    true, false = np.array([True, False]), np.array([False, True])
    assert kinds_of({"det": true, "seg": false}, {"seg": false}).tolist() == [1, 2 + 8]
    assert to_metadata([[(3, 10), (1, 54)], []]) == {b"multas_ray.kinds": b"[[[3,10],[1,54]],[]]"}


def test_of_a_file_that_states_its_kinds_the_footer_alone_is_read(tmp_path: Path) -> None:
    groups = [table_of([row(0, **DET), row(1, **DET), row(2)]), table_of([row(3), row(4, **SEG)])]
    data = bytearray(shard_of(groups, to_metadata([[(1, 2), (3, 1)], [(3, 1), (2, 1)]]), compression="none"))
    silent = read_index(write_set(tmp_path / "silent", shard_of(groups, None)), "train")
    footer = int.from_bytes(data[-8:-4], "little")
    data[4 : -8 - footer] = bytes(len(data) - 12 - footer)
    stated = read_index(write_set(tmp_path / "stated", bytes(data)), "train")
    for index in (silent, stated):
        assert index.task_mask(np.arange(5)).tolist() == [1, 1, 3, 3, 2]
        assert index.run_starts.tolist() == [0, 2, 4, 5], "a run goes on in the next row group"
        assert index.block_starts.tolist() == [0, 3, 5]


def test_row_groups_without_rows_are_no_blocks(tmp_path: Path) -> None:
    some, none = table_of([row(0), row(1, **DET)]), table_of([])
    for name, metadata in (("silent", None), ("stated", to_metadata([[], [(3, 1), (1, 1)], [], [(3, 1), (1, 1)]]))):
        path = write_set(tmp_path / name, shard_of([none, some, none, some], metadata))
        index = read_index(path, "train")
        assert (index.group.tolist(), index.block_starts.tolist()) == ([1, 3], [0, 2, 4])
        assert read_row(index, 3)["image_id"] == "image1"


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("[[[3,2]", r"Invalid JSON"),
        ("{}", r"valid (list|array), not"),
        ("[[3,2]]", r"\[0\]\[0\] in its footer: .*, not 3\)"),
        ("[[[3,2,1]]]", r"\[0\]\[0\] in its footer"),
        ("[[[16,2]]]", r"\[0\]\[0\]\[0\] in its footer: .* less than 16, not 16"),
        ("[[[-1,2]]]", r"greater than or equal to 0"),
        ("[[[3,0],[1,2]]]", r"\[0\]\[0\]\[1\] in its footer: .* greater than or equal to 1, not 0"),
        ("[[[3,2.0]]]", "valid integer"),
        ('[[["3",2]]]', "valid integer"),
        ("[[[true,2]]]", "valid integer"),
        ("[[[3,1]]]", r"row groups of '\[1\]' rows, but they are of '\[2\]'"),
        ("[[[3,1],[1,2]]]", r"row groups of '\[3\]' rows, but they are of '\[2\]'"),
        ("[[[3,1]],[[3,1]]]", r"row groups of '\[1, 1\]' rows, but they are of '\[2\]'"),
        ("[]", r"row groups of '\[\]' rows"),
        pytest.param("[" * 100_000, "Invalid JSON", id="deep"),
        (f"[[[3,{10**30}]]]", "row groups of"),
        pytest.param(b"\xff", "Invalid JSON", id="bytes"),
    ],
)
def test_a_footer_that_states_something_else_is_refused_in_one_line(
    tmp_path: Path, stated: str | bytes, words: str
) -> None:
    data = shard_of([table_of([row(0), row(1)])], {KEY: stated})
    expected = rf"train/part\.parquet: not a readable .*'multas_ray\.kinds'.*{words}"
    with pytest.raises(UserError, match=expected) as found:
        read_index(write_set(tmp_path, data), "train")
    assert len(str(found.value)) < 1000
    assert "\n" not in str(found.value)


def test_masks_that_are_stated_need_their_column(tmp_path: Path) -> None:
    table = table_of([row(0, **DET)]).drop_columns("mask")
    assert len(read_index(write_set(tmp_path / "right", shard_of([table], to_metadata([[(1, 1)]]))), "train")) == 1
    with pytest.raises(UserError, match="no column 'mask', but rows whose has_seg is true"):
        read_index(write_set(tmp_path / "wrong", shard_of([table], to_metadata([[(3, 1)]]))), "train")


def test_lists_that_are_not_counted_for_the_index_are_counted_where_they_are_read(tmp_path: Path) -> None:
    table = table_of([row(0, labels=[0] * 10**6)])
    path = write_set(
        tmp_path, shard_of([table_of([row(1)]), table], to_metadata([[(3, 1)], [(3, 1)]]), compression="zstd")
    )
    index = read_index(path, "train")
    assert read_row(index, 0)["image_id"] == "image1"
    with pytest.raises(UserError, match=r"part\.parquet: broken: \d+ bytes cannot be lists of 10000\d\d values"):
        read_row(index, 1)


def test_files_are_read_side_by_side_and_known_by_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_set(tmp_path, table_of([row(0)]))
    for number in range(9):
        pq.write_table(table_of([row(number)] * (number + 1)), tmp_path / "train" / f"{number}.parquet")
    info = read_info(path).model_dump_json(exclude={"command", "source"})
    digest = hashlib.sha256(info.encode())
    for file in sorted((tmp_path / "train").iterdir()):
        footer = io.BytesIO()
        pq.read_metadata(file).write_metadata_file(footer)
        digest.update(footer.getvalue())
    for readers in (1, 2, 32):
        monkeypatch.setattr(index_module, "READERS", readers)
        index = read_index(path, "train")
        assert index.digest == digest.hexdigest()
        assert index.files == tuple(f"train/{name}.parquet" for name in (*map(str, range(9)), "part"))
        assert np.diff(index.block_starts).tolist() == [*range(1, 10), 1]


def test_of_files_that_cannot_be_read_the_first_is_named(tmp_path: Path) -> None:
    path = write_set(tmp_path, table_of([row(0)]))
    for name in ("b", "c"):
        (tmp_path / "train" / f"{name}.parquet").write_bytes(json.dumps(name).encode())
    with pytest.raises(UserError, match=r"train/b\.parquet: not a readable Parquet file"):
        read_index(path, "train")
