"""A tuning split carved out of a training split."""

import numpy as np
import pytest

from jobs.prepare import main
from multas_ray.data.index import Index, read_index
from multas_ray.data.read import read_row
from multas_ray.errors import UserError


def ids(index: Index) -> set[str]:
    return {read_row(index, row)["image_id"] for row in range(len(index))}


def test_both_parts_together_are_the_split_and_keep_its_rows(scenes_path, tmp_path):
    out = str(tmp_path / "tuning")
    main(["carve", "--data", scenes_path, "--fraction", "0.25", "--out", out])
    whole, train, val = (
        read_index(path, split) for path, split in ((scenes_path, "train"), (out, "train"), (out, "val"))
    )
    assert ids(train) | ids(val) == ids(whole)
    assert not ids(train) & ids(val)
    # A quarter of 13 det, 13 seg, 12 both, 12 none.
    assert np.bincount(val.task_mask).tolist() == [3, 3, 3, 3]

    before = {(row := read_row(whole, number))["image_id"]: row for number in range(len(whole))}
    for index in (train, val):
        for number in range(len(index)):
            row = read_row(index, number)
            original = before[row["image_id"]]
            assert row["image"] == original["image"]
            assert (row["mask"] is None) == (original["mask"] is None)
            assert row["has_det"] == original["has_det"]
            np.testing.assert_array_equal(row["boxes"], original["boxes"])


def test_another_seed_carves_another_part(scenes_path, tmp_path):
    parts = []
    for seed in ("0", "0", "1"):
        out = str(tmp_path / f"part{len(parts)}")
        main(["carve", "--data", scenes_path, "--seed", seed, "--out", out])
        parts.append(ids(read_index(out, "val")))
    assert parts[0] == parts[1] != parts[2]


def test_a_split_that_is_not_there_is_named(scenes_path, tmp_path):
    with pytest.raises(UserError, match="no split 'test'"):
        main(["carve", "--data", scenes_path, "--split", "test", "--out", str(tmp_path / "out")])
