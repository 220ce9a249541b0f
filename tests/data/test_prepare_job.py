"""`prepare` as a job: its command line, kills of its processes, buckets."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from jobs import prepare
from multas_ray.data.index import read_index
from multas_ray.data.read import read_row
from multas_ray.data.schema import read_info
from multas_ray.data.writer import write_dataset
from multas_ray.errors import UserError
from multas_ray.storage import StoragePath
from tests.support.processes import kill_family
from tests.support.rows import make_row, source_of
from tests.support.shared import ROOT
from tests.support.trees import files_below

SCENES = ["scenes", "--train", "1500", "--val", "300", "--size", "64", "--out", "set"]


def start(folder: Path, *words: str) -> subprocess.Popen:
    """The job, in a folder."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "prepare.py"), *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=(folder / "log").open("a"),
        stderr=subprocess.STDOUT,
    )


def run(folder: Path, *words: str) -> str:
    """The output of a job that ends well."""
    job = start(folder, *words)
    assert job.wait(500) == 0, (folder / "log").read_text()
    return (folder / "log").read_text()


def wait_for(job: subprocess.Popen, log: Path, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not holds():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The files of a job that nothing happens to, without Ray."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, *SCENES, "--workers", "1")
    return files_below(folder / "set")


def test_the_number_of_workers_is_no_part_of_what_is_recorded():
    assert prepare.without_workers(SCENES) == SCENES
    for words in (["--workers", "3"], ["--workers=3"], ["--work", "3"]):
        assert prepare.without_workers([*SCENES[:3], *words, *SCENES[3:]]) == SCENES


def test_a_few_images_do_without_ray(monkeypatch, tmp_path):
    """The fixture of this layer fails where Ray is started."""
    monkeypatch.chdir(tmp_path)
    prepare.main(["scenes", "--train", "300", "--val", "3", "--size", "32", "--out", "set", "--max-side", "20"])
    info = read_info("set")
    assert info.splits == {"train": {"both": 300}, "val": {"both": 3}}
    row = read_row(read_index("set", "val"), 0)
    assert (row["height"], row["width"]) == (20, 20)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_job_goes_on_to_the_same_files(tmp_path, whole):
    def finished() -> int:
        return len(list((tmp_path / ".set.unfinished" / "records").rglob("*.json")))

    words = [*SCENES, "--workers", "2"]
    # The driver alone: its tasks may work on for a moment, beside those of the next.
    job = start(tmp_path, *words)
    wait_for(job, tmp_path / "log", lambda: finished() >= 2)
    job.kill()
    job.wait()
    assert not (tmp_path / "set").exists()
    job = start(tmp_path, *words)
    before = finished()
    wait_for(job, tmp_path / "log", lambda: finished() > before + 1)
    kill_family(job)
    job.wait()
    assert not (tmp_path / "set").exists()
    # Another number of workers is no other command.
    run(tmp_path, *SCENES, "--workers", "3")
    assert files_below(tmp_path / "set") == whole
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "set"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_workers_cost_no_row(tmp_path, whole):
    job = start(tmp_path, *SCENES, "--workers", "2")
    records = tmp_path / ".set.unfinished" / "records"
    for number in (1, 3):
        wait_for(job, tmp_path / "log", lambda number=number: len(list(records.rglob("*.json"))) >= number)
        kill_family(job, "ray::write_chunk")
    assert job.wait(500) == 0, (tmp_path / "log").read_text()
    assert files_below(tmp_path / "set") == whole


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bucket_gets_the_same_files(bucket, tmp_path, whole):
    out = StoragePath(bucket.format("set"))
    words = [*SCENES[:-1], out.uri, "--workers", "2"]
    job = start(tmp_path, *words)
    wait_for(job, tmp_path / "log", lambda: len((out / ".unfinished" / "records" / "train").names()) >= 2)
    kill_family(job)
    job.wait()
    # Shards are there, and no data set.
    assert (out / "train").names()
    with pytest.raises(UserError, match="no data set here"):
        read_info(out.uri)
    run(tmp_path, *words)
    fs.copy_files(out.path, str(tmp_path / "copy"), source_filesystem=out.filesystem)
    copied = files_below(tmp_path / "copy")
    assert {name: data for name, data in copied.items() if name != "dataset.json"} == {
        name: data for name, data in whole.items() if name != "dataset.json"
    }
    info = json.loads(copied["dataset.json"])
    assert info["command"].count(str(out)) == 1
    assert {**info, "command": ""} == {**json.loads(whole["dataset.json"]), "command": ""}


@pytest.mark.slow
def test_a_data_set_in_a_bucket_is_added_to_and_replaced(bucket):
    path = bucket.format("sets/letters")

    def ids() -> list[str]:
        index = read_index(path, "train")
        return [read_row(index, number)["image_id"] for number in range(len(index))]

    write_dataset(path, source_of({"train": [make_row("a"), make_row("b")]}))
    write_dataset(path, source_of({"train": [make_row("c")], "val": [make_row("d")]}), add=True)
    assert ids() == ["a", "b", "c"]
    info = read_info(path)
    assert info.folders == {"train": ["train", "train-1"]}
    assert info.splits == {"train": {"both": 3}, "val": {"both": 1}}
    with pytest.raises(UserError, match="already has train"):
        write_dataset(path, source_of({"train": [make_row("e")]}))
    write_dataset(path, source_of({"train": [make_row("f")]}), overwrite=True)
    assert ids() == ["f"]
    assert StoragePath(path).names() == ["dataset.json", "rejected.jsonl", "train-2"]


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(UserError, match=r"^--out s3://nobody/set: cannot be written \(") as caught:
        write_dataset(bucket.replace("bucket/{}", "nobody/set"), source_of({"train": [make_row()]}))
    assert "\n" not in str(caught.value)
