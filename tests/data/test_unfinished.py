"""What a killed `write_dataset` leaves, and that the same call goes on from there, to the same bytes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from multas_ray.data import writer
from multas_ray.data.index import read_index
from multas_ray.data.read import read_row
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.data.schema import read_info
from multas_ray.data.shard import Layout
from multas_ray.data.writer import write_dataset
from multas_ray.errors import RunError, UserError
from multas_ray.formats.source import Source, Split
from multas_ray.storage import StoragePath
from tests.support.rows import make_row, source_of
from tests.support.trees import files_below

STEPS = [(StoragePath, "create"), (StoragePath, "delete"), (Path, "rename"), (Path, "replace"), (shutil, "rmtree")]
"""What changes the disk."""


class Killed(BaseException):
    """The end of the process."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(writer, "LAYOUT", Layout(chunk=2))


def read(number: int) -> Row | Reject:
    """A row, of another task mask in turns; some ids stand twice, and some rows are rejected."""
    if number == 4:
        return Reject("missing file", "4.jpg", "4")
    row = make_row({6: "1", 7: "7", 8: "1"}.get(number, str(number)))
    return row.only("det") if number % 3 else row


SOURCE = source_of({"train": Split(range(9), read), "val": Split(range(9, 12), read)}, about="numbers")


def write(path: Path, source: Source = SOURCE, **options: Any) -> Any:
    return write_dataset(path, source, command="make it", max_rejected=0.5, **options)


def kill_at(number: int, call: Callable[[], object]) -> bool:
    """Call a function in a process that is killed at a step of this number. Whether it was."""
    steps = 0

    def counted(step: Callable[..., object]) -> Callable[..., object]:
        def take(*args: Any, **kwargs: Any) -> object:
            nonlocal steps
            steps += 1
            if steps > number:
                raise Killed
            return step(*args, **kwargs)

        return take

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            call()
        except Killed:
            return True
    return False


def test_finished_chunks_are_not_read_again(tmp_path):
    write(tmp_path / "whole")
    seen: list[int] = []

    def stops(number: int) -> Row | Reject:
        if number == 5 and 5 not in seen:
            seen.append(number)
            raise KeyboardInterrupt
        seen.append(number)
        return read(number)

    source = replace(SOURCE, splits={"train": Split(range(9), stops), "val": SOURCE.splits["val"]})
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", source)
    assert not (tmp_path / "set").exists()
    assert seen == [0, 1, 2, 3, 4, 5]
    del seen[:5]
    counted: list[tuple[str, int]] = []
    summary = write(tmp_path / "set", source, advance=lambda split, items: counted.append((split, items)))
    # Items 6 and 8 have the id of an earlier one: their chunks are read once more, to be written without them.
    assert seen == [5, 4, 5, 6, 7, 8, 6, 7, 8]
    assert counted[:2] == [("train", 2), ("train", 2)]
    assert sum(items for _, items in counted) == 12
    assert files_below(tmp_path / "set") == files_below(tmp_path / "whole")
    assert summary.rejected == {"duplicate id": 2, "missing file": 1}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set", "whole"]


@pytest.mark.long
@pytest.mark.parametrize("renames", [True, False], ids=["disk", "bucket"])
@pytest.mark.parametrize("options", [{}, {"add": True}, {"overwrite": True}], ids=["new", "add", "overwrite"])
def test_a_job_may_be_killed_at_any_step(tmp_path, monkeypatch, options, renames):
    """Until it ends, the former data set is there as it was, or, in a bucket, none; and the same call ends it."""
    if not renames:
        monkeypatch.setattr(StoragePath, "local", False)
    before = source_of({"train": [make_row(name) for name in "abc"], "test": [make_row("d")]}, about="letters")
    former, whole = tmp_path / "former", tmp_path / "whole"
    if options:
        for path in (former, whole):
            write_dataset(path, before)
    write(whole, **options)
    expected = seen_by_readers(whole)

    number = gaps = 0
    killed = True
    while killed:
        path = tmp_path / f"killed{number}" / "set"
        path.parent.mkdir()
        if options:
            shutil.copytree(former, path)
        killed = kill_at(number, lambda path=path: write(path, **options))
        found = seen_by_readers(path)
        if renames and "overwrite" in options and found is None:
            gaps += 1
        elif renames and "add" in options:
            assert set(seen_by_readers(former)) <= set(found) <= set(expected)
        else:
            assert found in (seen_by_readers(former), expected)
        state = path.with_name(".set.unfinished") if renames else path / ".unfinished"
        if found != expected or (state / "job.json").exists():
            write(path, **options)
            assert files_below(path) == files_below(whole)
            assert [entry.name for entry in path.parent.iterdir()] == ["set"]
        number += 1
    assert number > 20
    # On a disk, a data set is renamed, and then the one that replaces it.
    assert gaps == (renames and "overwrite" in options)


def seen_by_readers(path: Path) -> list[tuple[str, str, bool, bool]] | None:
    """Split, id and annotation of each row; None without a data set."""
    if not (path / "dataset.json").exists():
        return None
    rows = []
    for split in read_info(str(path)).splits:
        index = read_index(str(path), split)
        for number in range(len(index)):
            row = read_row(index, number)
            rows.append((split, row["image_id"], row["has_det"], row["has_seg"]))
    return rows


def interrupted(path: Path, **options: Any) -> None:
    """Leave the work of a job that was killed after two chunks."""

    def advance(split: str, items: int) -> None:
        counted.append(items)
        if sum(counted) == 5:
            raise KeyboardInterrupt

    counted: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        write(path, advance=advance, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"command": "make another"}, r"unfinished work of another command is there; go on with it \(make it\), or"),
        ({"max_side": 10}, r"source or options have changed since \(max_side\); delete .*\.set\.unfinished to begin"),
        ({"overwrite": True}, r"changed since \(overwrite\)"),
        ({"source": replace(SOURCE, about="letters")}, r"changed since \(about\)"),
        (
            {"source": replace(SOURCE, splits=SOURCE.splits | {"train": Split([*range(8), 99], read)})},
            r"changed since \(digest\)",
        ),
    ],
)  # fmt: skip
def test_another_call_is_told_what_to_do(tmp_path, change, words):
    interrupted(tmp_path / "set")
    left = files_below(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        write_dataset(
            **{"path": tmp_path / "set", "source": SOURCE, "command": "make it", "max_rejected": 0.5} | change
        )
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == left
    # As it says.
    shutil.rmtree(tmp_path / ".set.unfinished")
    write_dataset(**{"path": tmp_path / "set", "source": SOURCE, "command": "make it", "max_rejected": 0.5} | change)


def test_a_data_set_that_has_changed_since_is_not_added_to(tmp_path):
    path = tmp_path / "set"
    write_dataset(path, source_of({"test": [make_row("d")]}))
    interrupted(path)
    info = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(info | {"name": "another"}))
    with pytest.raises(UserError, match=r"has changed since this command was killed; delete .*unfinished"):
        write(path)


def test_another_number_of_rejected_rows_may_be_allowed_on_the_way(tmp_path):
    interrupted(tmp_path / "set")
    write_dataset(tmp_path / "set", SOURCE, command="make it", max_rejected=1)


def test_a_record_that_is_damaged_is_made_again(tmp_path):
    write(tmp_path / "whole")
    interrupted(tmp_path / "set")
    [first, second] = sorted((tmp_path / ".set.unfinished" / "records" / "train").iterdir())
    first.write_text("{")
    second.write_text('{"ids": 3}')
    write(tmp_path / "set")
    assert files_below(tmp_path / "set") == files_below(tmp_path / "whole")


def test_an_item_that_cannot_be_read_is_named_and_the_rest_is_kept(tmp_path):
    broken = True

    def fails(number: int) -> Row | Reject:
        if number == 7 and broken:
            raise KeyError("width")
        return read(number)

    source = replace(SOURCE, splits={"train": Split(range(9), fails), "val": SOURCE.splits["val"]})
    with pytest.raises(
        RunError, match=r"^train: 7 cannot be read: KeyError: 'width' \(test_unfinished.py, line \d+\)$"
    ):
        write(tmp_path / "set", source)
    assert len(list((tmp_path / ".set.unfinished" / "records" / "train").iterdir())) == 3
    broken = False
    write(tmp_path / "set", source)
    assert read_info(str(tmp_path / "set")).splits == {"train": {"det": 4, "both": 2}, "val": {"det": 2, "both": 1}}


def test_an_annotation_that_contradicts_itself_is_named_too(tmp_path):
    row = make_row("a")
    row.has_det = False
    with pytest.raises(RunError, match=r"^train: Row\(image_id='a'.*ValueError: a: boxes, but has_det is false"):
        write_dataset(tmp_path / "set", source_of({"train": [row]}))
    assert list(tmp_path.iterdir()) == []


def test_duplicates_of_other_chunks_are_rejected_in_the_order_of_the_items(tmp_path, monkeypatch):
    """Whatever the chunks are, the data set is that of a writer that reads all items one after another."""
    bad = make_row("a")
    bad.labels = bad.labels + 9
    rows = [make_row("a"), make_row("b"), make_row("b"), bad, make_row("c"), make_row("a"), bad, make_row("d")]
    rows += [Reject("missing file", "a.jpg", "a"), make_row("d"), bad.only("seg"), make_row("e")]
    lines, ids = [], []
    for chunk in (100, 1, 2, 3, 5):
        monkeypatch.setattr(writer, "LAYOUT", Layout(chunk=chunk))
        path = tmp_path / str(chunk)
        write_dataset(path, source_of({"train": rows}), max_rejected=1)
        lines.append((path / "rejected.jsonl").read_text())
        ids.append(
            [
                name
                for file in sorted((path / "train").iterdir())
                for name in pq.read_table(file)["image_id"].to_pylist()
            ]
        )
    assert ids == [["a", "b", "c", "d", "e"]] * 5
    assert len(set(lines)) == 1
    assert [json.loads(line)["reason"] for line in lines[0].splitlines()] == [
        *(
            "duplicate id",
            "duplicate id",
            "duplicate id",
            "duplicate id",
            "missing file",
            "duplicate id",
            "duplicate id",
        )
    ]


def test_rows_that_are_added_are_compared_with_those_that_are_there(tmp_path):
    path = tmp_path / "set"
    write_dataset(path, source_of({"train": [make_row(name) for name in "abcde"]}))
    summary = write_dataset(path, source_of({"train": [make_row(name) for name in "xeya"]}), add=True, max_rejected=0.5)
    assert summary.rejected == {"duplicate id": 2}
    assert [row[1] for row in seen_by_readers(path)] == [*"abcdexy"]


def test_rows_are_added_in_storage_that_renames_no_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(StoragePath, "local", False)
    path = tmp_path / "set"
    write_dataset(path, source_of({"train": [make_row("a")], "val": [make_row("b")]}))
    assert "folders" not in json.loads((path / "dataset.json").read_text())
    for name in "cd":
        write_dataset(path, source_of({"train": [make_row(name)]}), add=True)
    info = read_info(str(path))
    assert info.folders == {"train": ["train", "train-1", "train-2"]}
    assert [row[1] for row in seen_by_readers(path)] == ["a", "c", "d", "b"]
    with pytest.raises(UserError, match="1 duplicate id"):
        write_dataset(path, source_of({"train": [make_row("c")]}), add=True)
    assert [row[1] for row in seen_by_readers(path)] == ["a", "c", "d", "b"]
    assert json.loads((path / "failed.rejected.jsonl").read_text())["image_id"] == "c"

    # Downloaded, it is added to in the same way.
    monkeypatch.undo()
    monkeypatch.setattr(writer, "LAYOUT", Layout(chunk=2))
    write_dataset(path, source_of({"train": [make_row("e")]}), add=True)
    assert [row[1] for row in seen_by_readers(path)] == ["a", "c", "d", "e", "b"]

    write_dataset(path, source_of({"train": [make_row("f")]}), overwrite=True)
    assert sorted(entry.name for entry in path.iterdir()) == ["dataset.json", "rejected.jsonl", "train"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_what_is_overwritten_in_such_storage_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(StoragePath, "local", False)
    path = tmp_path / "set"
    write_dataset(path, source_of({"train": [make_row("a")], "val": [make_row("b")]}))
    write_dataset(path, source_of({"train": [make_row("c")]}), overwrite=True)
    assert sorted(entry.name for entry in path.iterdir()) == ["dataset.json", "rejected.jsonl", "train-1"]
    assert [row[1] for row in seen_by_readers(path)] == ["c"]
    write_dataset(path, source_of({"train": [make_row("d")]}), overwrite=True)
    assert sorted(entry.name for entry in path.iterdir()) == ["dataset.json", "rejected.jsonl", "train"]
    (path / "dataset.json").unlink()
    with pytest.raises(UserError, match="exists and is not a data set"):
        write_dataset(path, source_of({"train": [make_row("e")]}), overwrite=True)


def test_images_are_shrunk(tmp_path):
    write_dataset(tmp_path / "set", source_of({"train": [make_row("a")]}), max_side=15)
    [row] = pq.read_table(tmp_path / "set" / "train").to_pylist()
    assert (row["height"], row["width"], row["boxes"]) == (10, 15, [[0.5, 1, 5, 6]])


def test_files_that_only_another_node_sees_are_missed(tmp_path):
    """Each node of a cluster has a disk of its own, as often as not."""
    path = tmp_path / "set"

    def advance(split: str, items: int) -> None:
        shards = sorted(tmp_path.glob(".set.unfinished/data/train/*.parquet"))
        if shards:
            shards[0].unlink()

    with pytest.raises(
        UserError, match=r"part-0000\d.parquet: written, and not there; on a cluster, --out is a folder"
    ):
        write(path, advance=advance)
    assert not path.exists()
