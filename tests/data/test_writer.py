"""What the writer accepts, mends and refuses, and what it leaves on disk."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from multas_ray.data import writer
from multas_ray.data.footer import counted_runs, stated_runs
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.data.schema import SCHEMA, read_info
from multas_ray.data.shard import Layout
from multas_ray.data.writer import write_dataset
from multas_ray.errors import UserError
from multas_ray.formats.source import Split
from tests.support.rows import make_row, source_of


def rejections(path: Path) -> list[dict[str, str]]:
    """The records of rejected.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_written_rows_come_back(tmp_path: Path) -> None:
    rows = [make_row("both"), make_row("det").only("det"), make_row("seg").only("seg"), make_row("none").only(None)]
    rows.append(make_row("empty", boxes=[]).only("det"))
    summary = write_dataset(tmp_path / "set", source_of({"train": rows}, about="here"), command="make it")

    table = pq.read_table(tmp_path / "set" / "train")
    assert table.schema.equals(SCHEMA)
    records = {record["image_id"]: record for record in table.to_pylist()}
    found = {name: (r["has_det"], r["has_seg"], r["mask"] is None, len(r["boxes"])) for name, r in records.items()}
    # Rows of a kind lie together.
    assert list(found.items()) == [
        ("none", (False, False, True, 0)),
        ("det", (True, False, True, 1)),
        ("empty", (True, False, True, 0)),
        ("seg", (False, True, False, 0)),
        ("both", (True, True, False, 1)),
    ]
    assert records["both"]["boxes"] == [[1, 2, 10, 12]]
    assert records["both"]["labels"] == [1]
    assert records["both"]["image"] == rows[0].image
    mask = np.asarray(Image.open(io.BytesIO(records["seg"]["mask"])))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, rows[0].mask)
    info = read_info(str(tmp_path / "set"))
    assert info.splits == summary.rows == {"train": {"none": 1, "det": 2, "seg": 1, "both": 1}}
    assert (info.name, info.source, info.command) == ("toy", "here", "make it")


def test_class_masks_come_back_and_the_footer_tells_the_kinds(tmp_path: Path) -> None:
    masks = [{"det": (1,)}, {}, {"seg": (1, 2)}, {"det": (), "seg": ()}]
    rows = [make_row(str(number)) for number in range(5)]
    for row, unlabelled in zip(rows, masks, strict=False):
        row.unlabelled = unlabelled
    rows[4] = rows[0].only("seg")
    rows[4].image_id = "4"
    write_dataset(tmp_path / "set", source_of({"train": rows}))
    table = pq.read_table(tmp_path / "set" / "train").to_pylist()
    assert {r["image_id"]: (r["det_unlabelled"], r["seg_unlabelled"]) for r in table} == {
        "0": ([1], None),
        "1": (None, None),
        "2": (None, [1, 2]),
        "3": (None, None),
        "4": (None, None),
    }
    shard = pq.ParquetFile(tmp_path / "set" / "train" / "part-00000.parquet")
    assert stated_runs(shard) == [(2, 1), (3, 2), (7, 1), (11, 1)] == counted_runs(shard)


@pytest.mark.parametrize("numbers", [(2,), (-1, 0)])
def test_a_class_mask_names_classes(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    row = make_row("a")
    row.unlabelled = {"det": numbers}
    with pytest.raises(UserError, match=r"unknown class .*det classes \[.*\] are unlabelled, there are 2"):
        write_dataset(tmp_path / "set", source_of({"train": [row]}))


def test_rows_are_streamed_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LAYOUT", Layout(chunk=8, group_rows=4))
    advanced: list[str] = []
    split = Split(range(23), lambda number: make_row(f"{number:02d}"))
    write_dataset(tmp_path / "set", source_of({"train": split}), advance=lambda split, n: advanced.extend([split] * n))
    assert advanced == ["train"] * 23
    files = sorted((tmp_path / "set" / "train").iterdir())
    assert [file.name for file in files] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    groups = [pq.ParquetFile(file).metadata for file in files]
    assert [[meta.row_group(i).num_rows for i in range(meta.num_row_groups)] for meta in groups] == [
        [4, 4],
        [4, 4],
        [4, 3],
    ]
    ids = [name for file in files for name in pq.read_table(file)["image_id"].to_pylist()]
    assert ids == [f"{i:02d}" for i in range(23)]


def test_large_images_fill_a_row_group_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [make_row(f"{i:02d}") for i in range(7)]
    monkeypatch.setattr(writer, "LAYOUT", Layout(group_bytes=2 * len(rows[0].image) + 1))
    write_dataset(tmp_path / "set", source_of({"train": rows}))
    (file,) = (tmp_path / "set" / "train").iterdir()
    meta = pq.ParquetFile(file).metadata
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [3, 3, 1]


def test_too_many_rejected_rows_fail_in_one_line(tmp_path: Path) -> None:
    rows = [make_row("a"), make_row("b"), make_row("a"), Reject("missing mask", "c.png", "c")]
    with pytest.raises(UserError) as caught:
        write_dataset(tmp_path / "set", source_of({"train": rows}), max_rejected=0.49)
    message = str(caught.value)
    assert "2 of 4" in message
    assert "1 duplicate id, 1 missing mask" in message
    assert str(tmp_path / "set" / "rejected.jsonl") in message
    assert "\n" not in message
    assert [entry.name for entry in tmp_path.rglob("*")] == ["set", "rejected.jsonl"]
    assert [(r["image_id"], r["reason"]) for r in rejections(tmp_path / "set" / "rejected.jsonl")] == [
        ("a", "duplicate id"),
        ("c", "missing mask"),
    ]

    # What a failed job left does not stand in the way of the next one.
    rows = [make_row("a"), make_row("b"), make_row("a"), Reject("missing mask", "c.png", "c")]
    summary = write_dataset(tmp_path / "set", source_of({"train": rows}), max_rejected=0.5)
    assert summary.rows == {"train": {"both": 2}}
    assert len(rejections(tmp_path / "set" / "rejected.jsonl")) == 2


def test_ids_are_unique_in_a_split(tmp_path: Path) -> None:
    """A training and a validation set are each numbered from 0, as often as not."""
    splits = {"train": [make_row("a"), make_row("b"), make_row("b")], "val": [make_row("c"), make_row("a")]}
    summary = write_dataset(tmp_path / "set", source_of(splits), max_rejected=1)
    assert summary.rows == {"train": {"both": 2}, "val": {"both": 2}}
    assert [(r["split"], r["image_id"]) for r in rejections(tmp_path / "set" / "rejected.jsonl")] == [("train", "b")]


def test_rows_are_added_to_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LAYOUT", Layout(chunk=1))
    path = tmp_path / "set"
    write_dataset(path, source_of({"train": [make_row("a"), make_row("b")]}))
    more = [make_row("c"), make_row("a"), make_row("d").only("det")]
    with pytest.raises(UserError, match="already has train; --add adds rows"):
        write_dataset(path, source_of({"train": more}))
    write_dataset(path, source_of({"train": more, "val": [make_row("a")]}), add=True, max_rejected=0.5)
    assert read_info(str(path)).splits == {"train": {"det": 1, "both": 3}, "val": {"both": 1}}
    assert [file.name for file in sorted((path / "train").iterdir())] == [f"part-0000{n}.parquet" for n in (0, 1, 2, 4)]
    assert [row["image_id"] for row in pq.read_table(path / "train").to_pylist()] == ["a", "b", "c", "d"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_annotation_of_nothing_is_refused(tmp_path: Path) -> None:
    outside = make_row(boxes=[[40, 40, 50, 50], [9, 9, 3, 3]])
    with pytest.raises(UserError, match=r"train: no box is left .1 boxes dropped: inverted, 1 boxes dropped: outside"):
        write_dataset(tmp_path / "set", source_of({"train": [outside]}))
    ignored = make_row()
    ignored.mask = np.full_like(ignored.mask, 255)
    with pytest.raises(UserError, match=r"train: no class is in any mask, and 100.0% of the pixels are ignored"):
        write_dataset(tmp_path / "set", source_of({"train": [ignored]}))
    # Images without an object are annotation of something.
    empty = make_row(boxes=[])
    empty.mask = np.zeros_like(ignored.mask)
    assert write_dataset(tmp_path / "set", source_of({"train": [empty]})).rows == {"train": {"both": 1}}


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows for val"):
        write_dataset(tmp_path / "set", source_of({"train": [make_row()], "val": []}))
    with pytest.raises(UserError, match="1 of 1 rows rejected"):
        write_dataset(tmp_path / "set", source_of({"train": [Reject("x", "", "a")]}), max_rejected=1)


def test_unusable_outputs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "set", "nothing://bucket/set"):
        with pytest.raises(UserError, match="--out"):
            write_dataset(out, source_of({"train": [make_row()]}))
    for out in ("~nobody-of-this-name/set", "a\0b", "x" * 5000):
        with pytest.raises(UserError, match="no usable path"):
            write_dataset(out, source_of({"train": [make_row()]}))
    for split in ("../train", "..", "", "a/b", "a\n", "x" * 300):
        with pytest.raises(UserError, match="plain folder name"):
            write_dataset(tmp_path / "set", source_of({split: [make_row()]}))


def test_classes_that_are_none_are_refused_before_a_row_is_read(tmp_path: Path) -> None:
    def read(number: int) -> Row:
        raise AssertionError("read")

    split = Split([0], read)
    for classes, words in ((["cat", ""], "at least 1 character"), (["cat", "cat"], "'cat' stands there 2 times")):
        with pytest.raises(UserError, match=rf"^labels.json: det_classes.*{words}"):
            write_dataset(tmp_path / "set", source_of({"train": split}, det=classes, about="labels.json"))
    assert not (tmp_path / "set").exists()


def test_a_split_is_added_to_a_data_set(tmp_path: Path) -> None:
    path = tmp_path / "set"
    write_dataset(path, source_of({"train": [make_row("a")]}), command="first")
    # A folder that dataset.json does not list, as a killed run leaves it.
    (path / "val").mkdir()
    (path / "val" / "part-00007.parquet").touch()
    write_dataset(path, source_of({"val": [make_row("b"), make_row("b")]}), max_rejected=0.5, command="second")
    info = read_info(str(path))
    assert info.splits == {"train": {"both": 1}, "val": {"both": 1}}
    assert info.command == "first; second"
    assert [file.name for file in (path / "val").iterdir()] == ["part-00000.parquet"]
    assert [record["reason"] for record in rejections(path / "rejected.jsonl")] == ["duplicate id"]

    with pytest.raises(UserError, match="already has val"):
        write_dataset(path, source_of({"val": [make_row("c")]}))
    with pytest.raises(UserError, match="other classes"):
        write_dataset(path, source_of({"test": [make_row("c")]}, ["cow"], ["background", "cow"]))
    with pytest.raises(UserError, match="rejected"):
        write_dataset(path, source_of({"test": [Reject("x", "", "a")]}))
    assert read_info(str(path)) == info
    assert len(rejections(path / "rejected.jsonl")) == 1
    assert len(rejections(tmp_path / "set.rejected.jsonl")) == 1


def test_only_a_data_set_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "set"
    write_dataset(path, source_of({"train": [make_row("a")], "val": [make_row("b")]}))
    write_dataset(path, source_of({"train": [make_row("c")]}), overwrite=True)
    assert read_info(str(path)).splits == {"train": {"both": 1}}
    assert not (path / "val").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a data set"):
        write_dataset(precious, source_of({"train": [make_row("a")]}), overwrite=True)
    assert (precious / "thesis.txt").exists()


def test_a_killed_writer_leaves_no_data_set(tmp_path: Path) -> None:
    def read(number: int) -> Row:
        if number:
            raise KeyboardInterrupt
        return make_row("a")

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", source_of({"train": Split([0, 1], read)}))
    assert list(tmp_path.iterdir()) == []
