"""Chunks that are written by tasks on Ray: the same files as without it, whatever happens to the tasks."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from multas_ray.data import spread, writer
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.data.schema import read_info
from multas_ray.data.shard import Layout
from multas_ray.data.writer import write_dataset
from multas_ray.errors import RunError, UserError
from multas_ray.formats import scenes
from multas_ray.formats.source import Source, Split
from tests.support.rows import make_row, source_of
from tests.support.trees import files_below


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(writer, "LAYOUT", Layout(chunk=8, group_rows=4))


def with_duplicates(read: Callable[[int], Row], number: int) -> Row | Reject | None:
    """Scenes, some with the id of an earlier one, in its chunk or in another; some are rejected or left out."""
    if number % 11 == 10:
        return Reject("missing file", f"{number}.jpg", str(number))
    if number % 13 == 12:
        return None
    row = read(number)
    row.image_id = {9: read(1).image_id, 14: read(13).image_id, 30: read(3).image_id}.get(number, row.image_id)
    return row


def scenes_with_duplicates() -> Source:
    source = scenes.read(scenes.Options(train=45, val=9, size=32))
    train = source.splits["train"]
    return replace(source, splits={**source.splits, "train": Split(train.items, partial(with_duplicates, train.read))})


def test_the_files_do_not_depend_on_the_number_of_workers(started_ray, tmp_path):
    written = {}
    for workers in (1, 2, 3):
        counted: dict[str, int] = {"train": 0, "val": 0}

        def advance(split: str, items: int, counted: dict[str, int] = counted) -> None:
            counted[split] += items

        path = tmp_path / str(workers)
        summary = write_dataset(path, scenes_with_duplicates(), workers=workers, advance=advance, max_rejected=0.5)
        assert counted == {"train": 45, "val": 9}
        assert summary.rejected == {"missing file": 4, "duplicate id": 3}
        written[workers] = files_below(path)
    assert [name for name in written[1] if name.startswith("train")] == [
        f"train/part-0000{n}.parquet" for n in range(6)
    ]
    assert written[1] == written[2] == written[3]


def dies_at(number: int, marker: Path, times: int, item: int) -> Row:
    """The row of an item; where it has this number, the process is killed, the first times that it is read."""
    if item == number:
        with marker.open("a") as file:
            file.write("x")
        if len(marker.read_text()) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
    return make_row(str(item))


def dying(number: int, marker: Path, times: int) -> Source:
    return source_of({"train": Split(range(24), partial(dies_at, number, marker, times))})


def test_a_chunk_whose_process_dies_is_written_by_another(started_ray, tmp_path):
    write_dataset(tmp_path / "set", dying(13, tmp_path / "marker", 1), workers=2)
    assert (tmp_path / "marker").read_text() == "xx"
    write_dataset(tmp_path / "whole", dying(99, tmp_path / "no marker", 0))
    assert files_below(tmp_path / "set") == files_below(tmp_path / "whole")


def test_images_that_kill_every_process_are_named(started_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "RETRIES", 1)
    source = dying(13, tmp_path / "marker", 2)
    with pytest.raises(
        RunError, match=r"^train: items 8 to 15: the process that read them ended, 2 times \("
    ) as caught:
        write_dataset(tmp_path / "set", source, workers=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()
    # The next try finds them readable, and the others done, or read again.
    write_dataset(tmp_path / "set", source, workers=2)
    assert read_info(str(tmp_path / "set")).splits == {"train": {"both": 24}}


def raises_at(number: int, item: int) -> Row:
    if item == number:
        raise KeyError("width")
    return make_row(str(item))


def test_an_item_that_a_task_cannot_read_is_named_in_one_line(started_ray, tmp_path):
    source = source_of({"train": Split(range(24), partial(raises_at, 17))})
    with pytest.raises(RunError, match=r"^train: 17 cannot be read: KeyError: 'width' \(test_spread.py, line \d+\)$"):
        write_dataset(tmp_path / "set", source, workers=3)


def stops_at(number: int, item: int) -> Row:
    if item == number:
        raise UserError("the disk of the labels is not mounted")
    return make_row(str(item))


def test_a_line_for_the_user_stays_one(started_ray, tmp_path):
    source = source_of({"train": Split(range(24), partial(stops_at, 17))})
    with pytest.raises(UserError, match=r"^the disk of the labels is not mounted$"):
        write_dataset(tmp_path / "set", source, workers=3)
