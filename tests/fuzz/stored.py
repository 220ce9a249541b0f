"""What lies on disk between two runs: shards, stores of soft targets, checkpoints, run folders, results of a study."""

import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from multas_ray.checkpoint.folder import META, MODEL, STATE, Meta, newest_checkpoint, read_files, step_folder
from multas_ray.checkpoint.weights import load_network, load_state, write_checkpoint
from multas_ray.config import TASKS, AugmentConfig, ModelConfig
from multas_ray.config_file import parse_config
from multas_ray.data.describe import count
from multas_ray.data.geometry import Geometry
from multas_ray.data.index import Index, read_index
from multas_ray.data.read import _cached_group, read_sample
from multas_ray.data.reject import Reject
from multas_ray.data.schema import read_info
from multas_ray.data.transforms import VERSION
from multas_ray.storage import StoragePath
from multas_ray.study.layout import Study, lay_out
from multas_ray.study.results import portable, read_results
from multas_ray.study.summary import summary_tables
from multas_ray.tasks import PARTS
from multas_ray.tasks.detection import packed as detection
from multas_ray.tasks.detection.anchors import count_anchors
from multas_ray.tasks.detection.found import Found
from multas_ray.tasks.packed import compress, decompress, read_head
from multas_ray.tasks.segmentation import packed as segmentation
from multas_ray.teacher.store import (
    CODEC,
    ORIGINAL,
    SCHEMA,
    StoredTeacher,
    StoreInfo,
    StoreReader,
    _read_file,
    check_store,
    file_digest,
    file_of,
)
from multas_ray.teacher.teacher import arrays_of, to_tensors
from multas_ray.train.trainer import Trainer
from tests.fuzz.harness import Case
from tests.fuzz.mutate import encoded, mutated_bytes, mutated_tree
from tests.support.batches import bare_batch, every_class
from tests.support.networks import by_name
from tests.support.shards import INFO, changed, row, table_of, write_set

CPU = torch.device("cpu")
TYPES = (
    pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.int8(), pa.int64(), pa.uint64(), pa.float64(),
    pa.bool_(), pa.list_(pa.float64()), pa.list_(pa.int64()), pa.list_(pa.list_(pa.float64())), pa.null(),
    pa.list_(pa.list_(pa.float32(), 4), 2), pa.struct([("x", pa.int32())]), pa.dictionary(pa.int32(), pa.string()),
    None,
)  # fmt: skip


def shard(folder: Path) -> Callable[[Random], Case]:
    """A data set's Parquet file: other values, other types, other bytes."""
    good = table_of([row(number) for number in range(6)])

    def make(rng: Random) -> Case:
        table, way = good, rng.randrange(3)
        if way == 0:
            table = _other_values(rng, good)
        elif way == 1:
            table = _other_type(rng, good)
        data = _parquet(rng, table)
        if way == 2 or rng.random() < 0.1:
            data = _with_other_end(rng, data)
        write_set(folder, data)

        def run() -> None:
            _cached_group.cache_clear()
            index = read_index(str(folder), "train")
            assert len(index) == 6 or way != 0
            count(index, read_info(str(folder)), lambda rows: None)
            refused = [_sample(index, number) for number in range(len(index))]
            if reject := next(filter(None, refused), None):
                raise reject

        return data, run

    return make


def _sample(index: Index, number: int) -> Reject | None:
    """Read a row as training does, and look at what a loss would get."""
    try:
        values, sample = read_sample(index, number)
        height, width = sample["image"].pixels().shape[-2:]
        assert sample["image"].whole(2).shape == (3, 2, 2)
    except Reject as reject:
        return reject
    assert (height, width) == (values["height"], values["width"])
    if "boxes" in sample:
        boxes = sample["boxes"]
        assert np.isfinite(boxes).all()
        assert ((boxes >= 0) & (boxes <= [width, height, width, height])).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert len(boxes) == len(sample["labels"]) == len(sample["difficult"])
        assert all(0 <= label < len(index.det_classes) for label in sample["labels"].tolist())
    if "mask" in sample:
        assert sample["mask"].shape[-2:] == (height, width)
        assert set(np.unique(sample["mask"]).tolist()) <= {*range(len(index.seg_classes)), 255}
    return None


def _other_values(rng: Random, table: pa.Table) -> pa.Table:
    """A table in which some values are others, so far as their types can hold them."""
    rows = table.to_pylist()
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.randrange(len(rows))
        found = mutated_tree(rng, rows[place], 1)
        if rng.random() < 0.2 and isinstance(found, dict) and isinstance(found.get("image"), bytes):
            found["image"] = mutated_bytes(rng, found["image"])
        if rng.random() < 0.2 and isinstance(found, dict) and isinstance(found.get("mask"), bytes):
            found["mask"] = mutated_bytes(rng, found["mask"])
        try:
            table_of([found])
        except (pa.ArrowException, ValueError, TypeError, AttributeError, OverflowError):
            continue
        rows[place] = found
    return table_of(rows)


def _other_type(rng: Random, table: pa.Table) -> pa.Table:
    name = rng.choice(table.column_names)
    try:
        return changed(table, name, rng.choice(TYPES))
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return table.append_column(name, table[name]) if rng.random() < 0.5 else table.drop_columns([name])


def _parquet(rng: Random, table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(
        table,
        stream,
        row_group_size=rng.choice((2, 100)),
        compression=rng.choice(("snappy", "none", "zstd")),
        write_page_checksum=rng.random() < 0.5,
    )
    return stream.getvalue()


def _with_other_end(rng: Random, data: bytes) -> bytes:
    """Bytes changed anywhere, or in the footer, which lies at the end."""
    length = min(len(data), int.from_bytes(data[-8:-4], "little") + 8)
    if rng.random() < 0.5:
        return mutated_bytes(rng, data)
    return data[:-length] + mutated_bytes(rng, data[-length:], 4)


def store(folder: Path) -> Callable[[Random], Case]:
    """A store of soft targets: its description, and a file of answers."""
    torch.manual_seed(0)
    anchors, (detected, segmented) = count_anchors(32, 4), map(len, (INFO["det_classes"], INFO["seg_classes"]))
    answers = {
        "view": [0] * 3,
        "seed": [1, 2, 2**64 - 1],
        "digest": [0, 1, 2],
        "det": detection.pack(torch.randn(3, anchors, detected) - 3, torch.randn(3, anchors, 4)),
        "seg": segmentation.pack(torch.randn(3, segmented, 8, 8)),
    }
    return _store(folder, answers, size=32, augment=AugmentConfig(), transforms=VERSION, views=1)


def originals(folder: Path) -> Callable[[Random], Case]:
    """A store of answers for original images."""
    corners = torch.rand(3, 5, 2, 2).sort(dim=2).values.flatten(2)
    found = Found(corners, torch.rand(3, 5, len(INFO["det_classes"])))
    answers = {
        "view": [ORIGINAL] * 3,
        "seed": [0] * 3,
        "digest": [file_digest(row(number)["image"]) for number in range(3)],
        "det": PARTS["det"].original.pack(found),
        "seg": PARTS["seg"].original.pack(torch.rand(3, len(INFO["seg_classes"]), 16, 24).softmax(dim=1)),
    }
    return _store(folder, answers, size=None, augment=None, transforms=None, views=1, original=True)


def _store(folder: Path, answers: dict[str, list[Any]], **settings: Any) -> Callable[[Random], Case]:
    """A store with answers for three rows of a data set."""
    write_set(folder / "data", table_of([row(number) for number in range(3)]))
    index = read_index(str(folder / "data"), "train")
    teachers = {
        task: StoredTeacher(digest="0", classes=classes, precision="float32", on="all")
        for task, classes in (("det", INFO["det_classes"]), ("seg", INFO["seg_classes"]))
    }
    good = StoreInfo(dataset=index.digest, split="train", codec=CODEC, seed=0, teachers=teachers, **settings)
    answers = {"image_id": [f"image{number}" for number in range(3)]} | answers
    table = pa.table(answers, SCHEMA)
    place = folder / "store"
    batch = bare_batch(np.zeros((3, 3, 32, 32), np.uint8), distil={task: every_class(task, range(3)) for task in TASKS})
    geometry = (Geometry(), Geometry((-2.0, 0.7), (1.4, 0.1)), Geometry((0.5, 0.5), (0.2, 0.3)))
    batch = replace(batch, ids=tuple(answers["image_id"]), geometry=geometry)

    def make(rng: Random) -> Case:
        info, data = good.model_dump_json().encode(), _parquet(rng, table)
        way = rng.randrange(4)
        if way == 0:
            shown = info = encoded(rng, mutated_tree(rng, json.loads(info)))
        elif way == 1:
            shown = data = _with_other_end(rng, data)
        elif way == 2:
            shown = data = _parquet(rng, _other_type(rng, table.cast(_nullable(SCHEMA))))
        else:
            name = rng.choice(("det", "seg"))
            packed = [_mutated_answer(rng, value) if rng.random() < 0.9 else None for value in answers[name]]
            wrong = table.set_column(SCHEMA.get_field_index(name), name, pa.array(packed, pa.binary()))
            shown = data = _parquet(rng, wrong)
        file = Path(str(file_of(str(place), answers["view"][0], 0)))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        (place / "store.json").write_bytes(info)

        def run() -> None:
            _read_file.cache_clear()
            check_store(str(place), good)
            soft = to_tensors(StoreReader(str(place), index)(batch).soft, CPU)
            values = [value for answer in soft.values() for value in arrays_of(answer)]
            assert {len(value) for value in values} == {3}
            assert all(value.isfinite().all() for value in values)

        return shown, run

    return make


def _mutated_answer(rng: Random, packed: bytes) -> bytes:
    """A packed answer with wrong bytes, or with wrong numbers that a right compression holds."""
    if rng.random() < 0.5:
        return mutated_bytes(rng, packed)
    shape, size = read_head(packed)
    body = mutated_bytes(rng, bytes(decompress(packed, size)))
    if rng.random() < 0.5:
        shape = tuple(rng.choice((side, 0, side + 1, 2**32 - 1)) for side in shape)
    return compress(shape, [np.frombuffer(body, np.uint8)])


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def checkpoint(folder: Path) -> Callable[[Random], Case]:
    """A checkpoint, from which a network is loaded, and a run goes on."""
    model = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16)
    config = parse_config({
        "data": {"path": "nowhere", "size": 64},
        "model": model.model_dump(),
        "train": {"run": str(folder / "run"), "precision": "float32", "steps": 10},
        "tracking": {"wandb": "disabled"},
    })  # fmt: skip
    trainer = Trainer(config, {"det": ["cat", "dog"], "seg": ["background", "cat"]}, CPU)
    for parameter in trainer.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    meta = Meta(step=3, model=model, det_classes=["cat", "dog"], seg_classes=["background", "cat"], size=64, metrics={})
    place = step_folder(folder / "run", 3)
    write_checkpoint(place, trainer.network.state_dict(), trainer.state(), meta)
    good = dict(zip((MODEL, STATE, META), read_files(place, MODEL, STATE, META), strict=True))

    def make(rng: Random) -> Case:
        files = dict(good)
        name = rng.choice((MODEL, STATE, META, META, "manifest.json"))
        if name == META:
            files[META] = encoded(rng, mutated_tree(rng, json.loads(good[META])))
        elif name == STATE and rng.random() < 0.8:
            state = torch.load(io.BytesIO(good[STATE]), weights_only=True)
            _spoil(rng, state)
            files[STATE] = _saved(state)
        elif name in good:
            files[name] = mutated_bytes(rng, good[name])
        manifest: Any = {each: hashlib.sha256(data).hexdigest() for each, data in files.items()}
        files["manifest.json"] = json.dumps(manifest).encode()
        if name == "manifest.json":
            files[name] = encoded(rng, mutated_tree(rng, manifest))
        elif rng.random() < 0.1:
            # A manifest of what was written, so that the change is found by it.
            files["manifest.json"] = json.dumps(
                {each: hashlib.sha256(data).hexdigest() for each, data in good.items()}
            ).encode()
        for each, data in files.items():
            Path(str(place / each)).write_bytes(data)

        def run() -> None:
            newest_checkpoint(folder / "run")
            network, _ = load_network(str(place))
            with torch.no_grad():
                outputs = by_name(network(torch.zeros(1, 3, 64, 64)))
            assert all(value.isfinite().all() for value in outputs.values())
            trainer.load(load_state(place, CPU), str(place))
            assert all(value.isfinite().all() for value in trainer.network.state_dict().values())

        return (files[name] if len(files[name]) < 10_000 else name.encode()), run

    return make


SPOILED: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda value: value.double(),
    lambda value: value.bool(),
    lambda value: value.flatten()[:-1],
    lambda value: value[None],
    lambda value: value.float() * math.nan,
    lambda value: value.to_sparse(),
    lambda value: value.to("meta"),
)


def _spoil(rng: Random, state: Any) -> None:
    """Change something of a tree of tensors."""
    for _ in range(20):
        key = rng.choice(list(state))
        value = state[key]
        if isinstance(value, dict) and value and rng.random() < 0.9:
            state = value
        elif isinstance(value, torch.Tensor) and rng.random() < 0.7:
            state[key] = rng.choice(SPOILED)(value.clone())
            return
        elif rng.random() < 0.3:
            state[rng.choice((None, 0, "x", -1, 1e9, key if key != 0 else "0"))] = state.pop(key)
            return
        else:
            state[key] = rng.choice((None, 0, -1, "x", math.nan, [], {}, {0: {}}, torch.zeros(3), 2**70))
            return


def _saved(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def run_folder(folder: Path) -> Callable[[Random], Case]:
    """What a run leaves, of which its report is made."""
    from multas_ray.report.run_report import run_report
    from multas_ray.run_folder import newest_error, read_progress

    run = folder / "run"
    line = {"step": 5, "loss": 1.5, "lr": 0.1, "det/AP50": 40.0, "det/AP50/cat": 3.0, "seg/mIoU": 5.0, "score": 22.0}
    final = {"step": 5, "det/AP50": 40.0, "det/AP50/cat": 3.0, "score": 22.0}
    attempt = {"started": "2026-01-01T00:00:00", "from_step": 0, "code": {"commit": None, "digest": "0"},
               "precision": "float32", "versions": {"torch": "2"}, "data": {"train": "0"}, "teachers": {}}  # fmt: skip
    texts: dict[str, list[Any]] = {
        "metrics.jsonl": [line, line | {"step": 10, "time/data": 0.5, "time/slowest_rank": 0}],
        "result.json": [{"final": final, "best": final, "steps": 5, "seconds": 3.0, "checkpoint": "checkpoints/x"}],
        "attempts.jsonl": [attempt, attempt],
        "workers.jsonl": [{"rank": 0, "node": "10.0.0.1"}],
        "progress.json": [{"step": 3}],
        "config.yaml": [{"data": {"path": "x"}, "model": {"backbone": "resnet18"}}],
        "rejected.jsonl": [{"image_id": "x", "reason": "broken image", "detail": ""}],
        "bad_steps.jsonl": [{"step": 3}],
    }

    def make(rng: Random) -> Case:
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        names = rng.sample(sorted(texts), 2)
        for name, lines in texts.items():
            wrong = name in names
            data = b"\n".join(encoded(rng, mutated_tree(rng, each)) if wrong else _json(each) for each in lines)
            (run / name).write_bytes(mutated_bytes(rng, data, 4) if wrong and rng.random() < 0.2 else data)
        (run / "errors.log").write_bytes(mutated_bytes(rng, b"2026-01-01 error: x\n  more\n"))
        shown = b"\n".join((run / name).read_bytes() for name in names)

        def read() -> None:
            newest_error(StoragePath(run))
            read_progress(StoragePath(run), 0)
            page = Path(str(run_report(run))).read_bytes().decode()
            assert "<b>" not in page
            assert "\x1b" not in page

        return shown, read

    return make


def results(folder: Path) -> Callable[[Random], Case]:
    """Results of a study's trials, of which its tables are made."""
    study = Study(
        name="x",
        runs=str(folder / "runs"),
        results=str(folder / "results"),
        seeds=[0],
        base={"data": {"path": "nowhere"}, "model": {"pretrained": False}, "train": {"steps": 9}},
        arms={"det": {}, "seg": {}, "mtl": {"train": {"steps": 50}}},
    )
    trials = lay_out(study)
    metrics = {"det/AP": 20.0, "det/AP50": 40.0, "det/AP50/cat": 3.0, "seg/mIoU": 5.0, "score": 22.0}
    good = {
        name: {
            "arm": trial.arm, "seed": trial.seed, "final": metrics, "steps": trial.config.train.steps, "seconds": 3.0,
            "million_parameters": 3.4, "gmacs": 1.0, "needs": ["det-0"] if trial.arm == "mtl" else [],
            "curve": [metrics | {"step": 5}], "config": portable(trial.config),
        }
        for name, trial in trials.items()
    }  # fmt: skip
    (folder / "results" / "trials").mkdir(parents=True)

    def make(rng: Random) -> Case:
        wrong = rng.choice(list(good))
        for name, tree in good.items():
            data = encoded(rng, mutated_tree(rng, tree)) if name == wrong else _json(tree)
            (folder / "results" / "trials" / f"{name}.json").write_bytes(data)
            if name == wrong:
                shown = data
        return shown, lambda: summary_tables(study, read_results(study, trials))

    return make


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode()
