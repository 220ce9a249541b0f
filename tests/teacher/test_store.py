"""The store of soft targets: filled by a Ray Data job, replayed by a run."""

import json
import pickle
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from multas_ray.data.batch import TrainBatch, distilled_rows
from multas_ray.data.collate import make_train_batch
from multas_ray.data.index import read_index
from multas_ray.data.plan import Part, Plan
from multas_ray.data.schema import read_info
from multas_ray.errors import RunError, UserError, root_cause
from multas_ray.run_folder import read_metrics
from multas_ray.teacher.feed import StoredTargets, with_soft_targets
from multas_ray.teacher.precompute import precompute
from multas_ray.teacher.selection import SelectDistilled
from multas_ray.teacher.specs import teacher_specs
from multas_ray.teacher.store import StoreReader, _read_file
from multas_ray.teacher.teacher import arrays_of, digests, to_tensors
from multas_ray.train.run import plan_run, train
from tests.support.configs import changed
from tests.support.processes import named
from tests.support.shared import ROOT
from tests.support.teachers import spoil

VIEWS = 2


@pytest.fixture(scope="session")
def one_view() -> list[str]:
    """Where the first `fill` has put its store."""
    return []


@pytest.fixture
def fill(started_ray, one_view, tmp_path_factory):
    """Fills the store of `stored()` with one view; the job is run once for all tests."""

    def filled(config) -> None:
        if not one_view:
            precompute(config, 1)
            kept = str(tmp_path_factory.mktemp("filled") / "store")
            shutil.copytree(config.teachers.store, kept)
            one_view.append(kept)
        else:
            shutil.copytree(one_view[0], config.teachers.store)

    return filled


def specs_of(config):
    return teacher_specs(config, read_info(config.data.path))


def batch_at(config, plan: Plan, part: Part) -> TrainBatch:
    """A batch with the rows that are distilled."""
    return SelectDistilled(config, plan.index.names, {})(make_train_batch(plan.index, part, config.data.augment))


def files(config) -> list[Path]:
    return sorted(Path(config.teachers.store).rglob("*.parquet"))


def test_a_store_holds_each_view_s_answers_for_the_very_pixels_of_the_training(started_ray, stored):
    torch.set_num_threads(1)
    config = stored(train={"run": "unused", "steps": 60, "batch_size": 8})
    told = []
    done = precompute(config, VIEWS, lambda written, total: told.append((written, total)))
    # One row group of 50 rows; 12 are annotated for both, and need no teacher.
    assert (done["files"], done["images"], done["views"]) == (VIEWS, 38 * VIEWS, VIEWS)
    assert told == [(0, 2), (1, 2), (2, 2)]

    # Another run, of another seed, takes its pixels and targets from the store.
    config = stored(train={"run": "unused", "steps": 60, "batch_size": 8, "seed": 5})
    specs = specs_of(config)
    plan = plan_run(config, specs)
    reader = StoreReader(config.teachers.store, plan.index)
    teachers = {task: spec.load("cpu") for task, spec in specs.items()}
    seen, checked = set(), set()
    for step in (0, 7, 13, 20):
        part = plan.part(step, 0, 1)
        assert (part.views == part.epochs % VIEWS).all()
        seen |= set(part.views.tolist())
        batch = reader(batch_at(config, plan, part))
        for task, rows in distilled_rows(batch).items():
            np.testing.assert_array_equal(batch.soft[task].digests, digests(batch.images[rows]))
            expected = to_tensors({task: teachers[task](batch.images[rows])}, torch.device("cpu"))[task]
            found = to_tensors({task: batch.soft[task]}, torch.device("cpu"))[task]
            for value, wanted in zip(arrays_of(found), arrays_of(expected), strict=True):
                # The networks compute other batches, so a last digit may differ.
                torch.testing.assert_close(value, wanted, rtol=1e-2, atol=1e-2)
                checked.add(task)
    assert seen == {0, 1}
    assert checked == {"det", "seg"}


def test_a_run_trains_from_a_store(fill, stored, tmp_path):
    fill(stored())
    config = stored(train={"run": str(tmp_path / "run"), "steps": 8, "batch_size": 8, "seed": 3, "log_every_steps": 1})
    assert train(config)["steps"] == 8
    lines = [line for line in read_metrics(tmp_path / "run") if "loss/kd_seg" in line]
    assert len(lines) == 8
    assert all(line["loss/kd_seg"] > 0 for line in lines)


def test_only_what_is_missing_is_computed(started_ray, stored, tmp_path, monkeypatch):
    # A relative path is one of the job's own folder, whatever folder its processes run in.
    monkeypatch.chdir(tmp_path)
    config = changed(stored(), **{"teachers.store": "store"})
    assert precompute(config, 1)["files"] == 1
    assert precompute(config, 1)["files"] == 0
    before = {file: file.stat().st_mtime_ns for file in files(config)}
    grown = precompute(config, 3)
    assert (grown["files"], grown["views"]) == (2, 3)
    assert {file: file.stat().st_mtime_ns for file in files(config) if file in before} == before
    again = precompute(config, 2)
    assert (again["files"], again["views"]) == (0, 3)
    files(config)[1].unlink()
    with pytest.raises(UserError, match=r"1 files are missing; run jobs/precompute.py again"):
        train(config)
    assert precompute(config, 3)["files"] == 1
    assert len(files(config)) == 3


def test_a_teacher_that_answers_with_nan_ends_the_job(started_ray, stored, tmp_path):
    (tmp_path / "broken").mkdir()
    config = stored()
    broken = spoil(config.teachers.seg.source, tmp_path / "broken")
    config = changed(config, **{"teachers.seg.checkpoint": broken})
    with pytest.raises(Exception, match="NaN") as stop:
        precompute(config, 1)
    cause = root_cause(stop.value)
    assert isinstance(cause, UserError)
    assert str(cause).startswith(f"teachers.seg.source {config.teachers.seg.source}: it answers with NaN")
    assert not files(config)


def test_one_store_of_all_rows_serves_runs_that_distil_fewer(started_ray, stored):
    wide = {"det": {"on": "all"}, "seg": {"on": "all"}}
    config = stored(distill=wide)
    assert precompute(config, 1)["images"] == 50
    plan_run(stored(distill=wide), specs_of(config))
    plan_run(stored(), specs_of(config))
    assert precompute(stored(), 1)["files"] == 0, "nor does it take answers away"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"size": 96}}, "made with data.size 64, but this run has 96"),
        ({"data": {"augment": {"flip": 0.0}}}, "made with data.augment .*'flip': 0.5.*'flip': 0.0"),
        ({"data": {"train": "val"}}, "made with data.path"),
        ({"distill": {"det": {"on": "all"}}}, "made with distill.det.on missing, but this run has all"),
        ({"train": {"precision": "bfloat16"}}, "made with teachers.det train.precision float32, .* bfloat16"),
    ],
)
def test_a_store_of_something_else_is_refused(fill, stored, make_config, sections, words):
    fill(stored())
    sections = {name: {**getattr(make_config(), name).model_dump(), **values} for name, values in sections.items()}
    config = stored(**sections)
    with pytest.raises(UserError, match=words):
        plan_run(config, specs_of(config))
    with pytest.raises(UserError, match=words):
        precompute(config, 1)


def test_another_teacher_is_refused(fill, stored, tmp_path):
    config = stored()
    fill(config)
    (tmp_path / "other").mkdir()
    other = spoil(config.teachers.det.source, tmp_path / "other")
    config = changed(config, **{"teachers.det.checkpoint": other})
    with pytest.raises(UserError, match=r"made with teachers\.det\.source of digest"):
        plan_run(config, specs_of(config))


def test_other_pixels_than_the_store_s_are_not_trained_on(fill, stored):
    config = stored()
    fill(config)
    plan = plan_run(config, specs_of(config))
    batch = StoreReader(config.teachers.store, plan.index)(batch_at(config, plan, plan.part(0, 0, 1)))
    (fed,) = with_soft_targets([batch], StoredTargets(), 0)
    assert to_tensors(fed.soft, torch.device("cpu")).keys() == {"det", "seg"}
    other = replace(batch, images=np.ascontiguousarray(batch.images[..., ::-1]))
    with pytest.raises(RunError, match=r"soft targets of .* are not of this batch's pixels"):
        next(with_soft_targets([other], StoredTargets(), 0))


def reader_and_batch(config) -> tuple[StoreReader, TrainBatch]:
    """The reader of a filled store, and the first step's batch."""
    plan = plan_run(config, specs_of(config))
    return StoreReader(config.teachers.store, plan.index), batch_at(config, plan, plan.part(0, 0, 1))


def rewrite(file: Path, change) -> None:
    """Write a store's file anew, its table changed."""
    pq.write_table(change(pq.read_table(file, partitioning=None)), file)


def with_column(name, make):
    """A change of one column: of a list of its values into another column."""
    return lambda table: table.set_column(table.column_names.index(name), name, make(table[name].to_pylist()))


def packed_anew(change):
    """A change of what is packed, past its head, of all answers of a detector."""

    def each(data: bytes | None) -> bytes | None:
        if data is None:
            return None
        size = int(np.frombuffer(data, np.uint32, 4)[3])
        body = bytearray(pa.Codec("zstd").decompress(data[16:], size))
        change(body)
        return data[:12] + np.uint32(len(body)).tobytes() + pa.Codec("zstd").compress(bytes(body), asbytes=True)

    return with_column("det", lambda values: pa.array([each(value) for value in values], pa.binary()))


def binary(change):
    return with_column("det", lambda values: pa.array([value and change(value) for value in values], pa.binary()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.slice(0, 0), "the det target of image 'scene_.*': is not there"),
        (lambda table: table.drop_columns(["digest"]), "has no column 'digest'"),
        (with_column("digest", lambda values: pa.array(map(float, values))), "'digest' is of the type 'double'"),
        (with_column("digest", lambda values: pa.array([-1] * len(values))), "not a readable Parquet file"),
        (with_column("digest", lambda values: pa.nulls(len(values), pa.uint64())), "'digest' with null values"),
        (
            with_column("image_id", lambda values: pa.nulls(len(values), pa.string())),
            "'image_id' with null values",
        ),
        (with_column("det", lambda values: pa.nulls(len(values), pa.binary())), "the det target .* is not there"),
        (with_column("det", lambda values: pa.array(["x"] * len(values))), "column 'det' is of the type 'string'"),
        (binary(lambda data: data[:10]), "the det target of image 'scene_.*': cut short"),
        (
            binary(lambda data: np.uint32(2**31).tobytes() + data[4:]),
            r"of the shape \(2147483648, 6, \d+\), not one of",
        ),
        (binary(lambda data: data[:8] + np.uint32(2**31).tobytes() + data[12:]), "of another size than it says"),
        (binary(lambda data: data[:12] + np.uint32(2**32 - 1).tobytes() + data[16:]), "of another size than it says"),
        (binary(lambda data: data[:20] + bytes(len(data) - 20)), "ZSTD"),
        (packed_anew(lambda body: body.extend(bytes(8))), "of another size|do not fit"),
        (packed_anew(lambda body: body.__setitem__(slice(-24, None), b"\xff" * 24)), "not finite|do not fit"),
    ],
)
def test_a_file_that_has_changed_is_named_and_what_to_do(fill, stored, change, words):
    config = stored()
    fill(config)
    read, batch = reader_and_batch(config)
    (file,) = files(config)
    rewrite(file, change)
    with pytest.raises(UserError, match=rf"^{file}: .*{words}.*; delete the file and run jobs/precompute\.py again$"):
        read(batch)


def test_a_store_s_file_runs_no_code(fill, stored, tmp_path):
    class Marker:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    config = stored()
    fill(config)
    read, batch = reader_and_batch(config)
    (file,) = files(config)
    code = with_column(
        "det",
        lambda values: pa.ExtensionArray.from_storage(
            ArrowPythonObjectType(), pa.array([pickle.dumps(Marker())] * len(values), pa.large_binary())
        ),
    )
    rewrite(file, code)
    with pytest.raises(UserError, match=rf"^{file}: column 'det' is of the type 'extension<ray"):
        read(batch)
    assert not (tmp_path / "ran").exists()


def test_changed_bytes_of_a_file_change_no_target_unseen(fill, stored):
    config = stored()
    fill(config)
    read, batch = reader_and_batch(config)
    expected = read(batch)
    (file,) = files(config)
    whole, chosen, refused = file.read_bytes(), random.Random(4), 0
    for number in range(120):
        data = bytearray(whole)
        place = chosen.randrange(len(data))
        if number % 3:
            data[place] ^= 1 << chosen.randrange(8)
        else:
            del data[place : place + chosen.choice([1, 9, 300])]
        file.write_bytes(data)
        _read_file.cache_clear()
        try:
            found = read(batch)
        except UserError as error:
            refused += str(error).startswith(f"{file}: ")
        else:
            for task, answer in expected.soft.items():
                np.testing.assert_array_equal(found.soft[task].digests, answer.digests)
                assert found.soft[task].packed == answer.packed
            refused += 1
    assert refused == 120
    file.unlink()
    _read_file.cache_clear()
    with pytest.raises(UserError, match=rf"^{file}: is gone; run jobs/precompute\.py again"):
        read(batch)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:50], "not JSON"),
        (lambda text: text.replace('"views": 1', '"views": 1000000000'), "views: .* less than or equal to 100000"),
        (lambda text: text.replace('"views": 1', '"views": 0'), "views: .* greater than or equal to 1"),
        (lambda text: text.replace('"seed": 0', '"seed": -1'), "seed: .* greater than or equal to 0"),
        (lambda text: text.replace('"codec"', '"kodec"'), "kodec: no such key; allowed here: dataset, split, size"),
        (lambda text: "[" * 100_000, "thousands of levels deep"),
        (lambda text: text.replace('"split": "train"', '"split": "tr\xe9in"'), "not text in UTF-8"),
    ],
)
def test_a_store_s_description_that_is_none_is_one_line(fill, stored, change, words):
    config = stored()
    fill(config)
    file = Path(config.teachers.store) / "store.json"
    file.write_bytes(change(file.read_text()).encode("latin-1"))
    with pytest.raises(UserError, match=rf"^{file}: .*{words}.*; delete the store and run jobs/precompute\.py again"):
        plan_run(config, specs_of(config))


def test_a_store_needs_teachers_one_size_and_losses_that_live_with_it(stored, make_config, random_teachers):
    with pytest.raises(UserError, match=r"stored needs teachers\.store"):
        make_config(teachers={"placement": "stored"})
    with pytest.raises(UserError, match=r"soft targets of augmented images are of one size; .* --views original"):
        precompute(stored(data={**make_config().data.model_dump(), "size": [64, 96]}), 1)
    with pytest.raises(UserError, match=r"distill.det.mse: needs the teachers' whole answers"):
        stored(distill={"det": {"mse": 1}})
    with pytest.raises(UserError, match=r"distill.seg.temperature: needs the teachers' whole answers"):
        stored(distill={"seg": {"temperature": 2}})
    with pytest.raises(UserError, match="no store here"):
        check_store_of(stored())
    with pytest.raises(UserError, match="no teacher of a task that is distilled"):
        precompute(make_config(teachers={"store": "nowhere"}), 1)


def check_store_of(config):
    plan_run(config, specs_of(config))


def test_dense_losses_stay_dense(make_config, random_teachers):
    config = make_config(distill={"targets": "packed", "det": {"soft_box": 1}}, teachers=random_teachers)
    specs = specs_of(config)
    assert (specs["det"].terms.packed, specs["seg"].terms.packed) == (False, True)


# --- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_job_leaves_whole_files_and_the_next_computes_the_rest(stored, tmp_path):
    config = stored()
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    command = [sys.executable, "jobs/precompute.py", "--config", str(file), "--views", "60"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 200
    while len(files(config)) < 6 and time.monotonic() < end:
        time.sleep(0.05)
    # First an actor alone: Ray Data brings it back. Then everything.
    writers = named("Writer", job.pid)
    for process in writers:
        process.kill()
    at = len(files(config))
    while len(files(config)) < at + 6 and time.monotonic() < end:
        time.sleep(0.05)
    for process in [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]:
        process.kill()
    job.wait()
    time.sleep(1)
    before = files(config)
    assert writers
    assert 12 <= len(before) < 60, "killed in the midst of it"
    for name in before:
        assert pq.read_metadata(name).num_rows == 38
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{60 - len(before)} files written" in done
    index = read_index(config.data.path, "train")
    ids = [row for name in files(config) for row in pq.read_table(name, partitioning=None)["image_id"].to_pylist()]
    assert len(ids) == 38 * 60
    assert len(set(ids)) == 38 <= len(index)
    assert json.loads((Path(config.teachers.store) / "store.json").read_text())["views"] == 60
