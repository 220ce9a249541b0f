"""A part of a training split that is held out."""

import numpy as np
import pytest

from jobs.prepare import main
from multas_ray.data.index import Index, read_index
from multas_ray.data.read import read_row
from multas_ray.data.schema import read_info
from multas_ray.data.writer import write_dataset
from multas_ray.errors import UserError
from tests.support.rows import SEG, make_row, source_of


def ids(index: Index) -> set[str]:
    return {read_row(index, row)["image_id"] for row in range(len(index))}


def test_both_parts_together_are_the_split_and_keep_its_rows(scenes_path, tmp_path):
    out = str(tmp_path / "tuning")
    main(["holdout", "--data", scenes_path, "--fraction", "0.25", "--out", out])
    whole, train, val = (
        read_index(path, split) for path, split in ((scenes_path, "train"), (out, "train"), (out, "val"))
    )
    assert ids(train) | ids(val) == ids(whole)
    assert not ids(train) & ids(val)
    # A quarter of 13 det, 13 seg, 12 both, 12 none.
    assert np.bincount(val.task_mask(np.arange(12))).tolist() == [3, 3, 3, 3]

    before = {(row := read_row(whole, number))["image_id"]: row for number in range(len(whole))}
    for index in (train, val):
        for number in range(len(index)):
            row = read_row(index, number)
            original = before[row["image_id"]]
            assert row["image"] == original["image"]
            assert (row["mask"] is None) == (original["mask"] is None)
            assert row["has_det"] == original["has_det"]
            np.testing.assert_array_equal(row["boxes"], original["boxes"])


def test_another_seed_holds_out_another_part(scenes_path, tmp_path):
    parts = []
    for seed in ("0", "0", "1"):
        out = str(tmp_path / f"part{len(parts)}")
        main(["holdout", "--data", scenes_path, "--seed", seed, "--out", out])
        parts.append(ids(read_index(out, "val")))
    assert parts[0] == parts[1] != parts[2]


def test_a_split_that_is_not_there_is_named(scenes_path, tmp_path):
    with pytest.raises(UserError, match="no split 'test'"):
        main(["holdout", "--data", scenes_path, "--split", "test", "--out", str(tmp_path / "out")])


def test_the_older_name_does_the_same(scenes_path, tmp_path):
    files = []
    for name in ("holdout", "carve"):
        main([name, "--data", scenes_path, "--out", str(tmp_path / name)])
        files.append((tmp_path / name / "val" / "part-00000.parquet").read_bytes())
    assert files[0] == files[1]


def test_each_task_keeps_its_classes(tmp_path):
    """As of things and stuff, which have other classes."""
    write_dataset(tmp_path / "set", source_of({"train": [make_row(str(n)) for n in range(4)]}, ["sky", "cat"], SEG))
    main(["holdout", "--data", str(tmp_path / "set"), "--fraction", "0.5", "--out", str(tmp_path / "out")])
    info = read_info(str(tmp_path / "out"))
    assert (info.det_classes, info.seg_classes) == (["sky", "cat"], SEG)
    assert info.splits == {"train": {"both": 2}, "val": {"both": 2}}
