"""Shards of anybody: what holds the same in other types is read, what does not is refused by its schema."""

import io
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multas_ray.data.describe import count
from multas_ray.data.footer import to_metadata
from multas_ray.data.index import read_index
from multas_ray.data.read import read_row, read_sample
from multas_ray.data.reject import Reject
from multas_ray.data.schema import MAY_BE_MISSING, SCHEMA, read_info
from multas_ray.errors import UserError
from tests.support.shards import changed, row, table_of, write_set
from tests.support.shared import ROOT

ROWS = [
    row(0, det_unlabelled=[1], seg_unlabelled=[1, 2]),
    row(1, has_seg=False, mask=None),
    row(2, has_det=False, boxes=[], labels=[], difficult=[], seg_unlabelled=[1]),
]


def as_python(values: dict) -> dict:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("image_id", kind) for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))],
        *[(name, kind) for name in ("image", "mask") for kind in (pa.large_binary(), pa.binary_view())],
        *[("height", kind) for kind in (pa.int64(), pa.uint8(), pa.uint64())],
        *[("boxes", kind(pa.list_(pa.float64()))) for kind in (pa.list_, pa.large_list)],
        ("boxes", pa.large_list(pa.list_(pa.float64(), 4))),
        ("boxes", pa.list_(pa.large_list(pa.float32()))),
        *[("labels", kind) for kind in (pa.large_list(pa.int64()), pa.list_(pa.uint8()))],
        ("difficult", pa.large_list(pa.bool_())),
        *[("det_unlabelled", kind) for kind in (pa.large_list(pa.int64()), pa.list_(pa.uint8()))],
    ],
    ids=str,
)
def test_types_that_hold_the_same_are_read_as_the_contract_s(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    index = read_index(write_set(tmp_path, changed(table_of(ROWS), name, kind)), "train")
    assert index.task_mask(np.arange(3)).tolist() == [3, 1, 2]
    for number, original in enumerate(ROWS):
        found = read_row(index, number)
        assert as_python(found) == original
        assert (found["boxes"].dtype, found["labels"].dtype, found["difficult"].dtype) == (np.float32, np.int32, bool)


def test_lists_of_one_length_are_lists_and_further_columns_nothing(tmp_path: Path) -> None:
    table = changed(table_of([row(0), row(1)]), "labels", pa.list_(pa.int32(), 2))
    table = table.append_column("image.thumbnail", pa.array([{"a": 1}, None])).append_column("x", pa.array([1, 2]))
    index = read_index(write_set(tmp_path, table.select(table.column_names[::-1])), "train")
    assert read_row(index, 1)["labels"].tolist() == [1, 1]
    assert read_row(index, 1).keys() == set(SCHEMA.names)


def test_a_shard_needs_no_column_of_what_it_has_none_of(tmp_path: Path) -> None:
    """Nothing difficult, no masks, and no class that nobody looked for: so are shards of version 1."""
    table = table_of([row(0, has_seg=False), row(1, has_seg=False)])
    for name in MAY_BE_MISSING:
        table = changed(table, name, None)
    values, sample = read_sample(read_index(write_set(tmp_path, table), "train"), 1)
    assert values["det_unlabelled"].tolist() == []
    assert sample["difficult"].tolist() == [False, False]
    assert "mask" not in sample


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        *[(name, None, f"has no column '{name}'") for name in SCHEMA.names if name not in MAY_BE_MISSING],
        ("mask", None, "no column 'mask', but rows whose has_seg is true"),
        ("image_id", pa.binary(), "column 'image_id' is of the type 'binary', needed is 'string'"),
        ("image", pa.dictionary(pa.int32(), pa.binary()), "column 'image' is of the type 'dictionary<.*'"),
        ("height", pa.float64(), "column 'height' is of the type 'double', needed is 'int32'"),
        ("boxes", pa.list_(pa.list_(pa.int32())), "column 'boxes' is of the type"),
        ("labels", pa.list_(pa.float64()), "column 'labels' is of the type"),
    ],
    ids=str,
)
def test_other_columns_are_refused_in_a_line_that_names_file_and_column(
    tmp_path: Path, name: str, kind: pa.DataType | None, words: str
) -> None:
    path = write_set(tmp_path, changed(table_of([row(0), row(1)]), name, kind))
    with pytest.raises(UserError, match=rf"train/part\.parquet: .*{words}.*; write it anew \(docs/data\.md"):
        read_index(path, "train")


def test_boxes_of_five_and_a_column_twice_are_refused(tmp_path: Path) -> None:
    table = table_of([row(0, boxes=[])])
    five = changed(table, "boxes", pa.list_(pa.list_(pa.float32(), 5)))
    with pytest.raises(UserError, match=r"column 'boxes' is of the type '.*\[5\]>', needed is '.*\[4\]>'"):
        read_index(write_set(tmp_path / "five", five), "train")
    with pytest.raises(UserError, match="has 2 columns 'height'"):
        read_index(write_set(tmp_path / "twice", table.append_column("height", table["height"])), "train")


def test_what_an_unchanged_data_set_is_known_by_has_not_changed(tmp_path: Path) -> None:
    """Runs and stores of soft targets would not know their data set again."""
    table = pa.table({"has_det": [True], "has_seg": [False]})
    for name in (name for name in SCHEMA.names if name not in table.column_names):
        table = table.append_column(name, pa.array([row(0, image=b"", mask=b"")[name]], SCHEMA.field(name).type))
    path = write_set(tmp_path, table.select(SCHEMA.names).replace_schema_metadata(), store_schema=False)
    first = read_index(path, "train").digest
    (tmp_path / "dataset.json").write_text((tmp_path / "dataset.json").read_text().replace("}}}", '}}, "source": "x"}'))
    assert read_index(path, "train").digest == first
    (tmp_path / "dataset.json").write_text((tmp_path / "dataset.json").read_text().replace("dog", "cow"))
    assert read_index(path, "train").digest != first


# --- hostile files ----------------------------------------------------------------------------------------------------

READ_ALL = """
import sys
import ray.data  # which registers the types that unpickle
from multas_ray.data.describe import count
from multas_ray.data.index import Index, Origin, read_index
from multas_ray.data.plan import EvaluationPlan
from multas_ray.data.read import read_row
from multas_ray.data.schema import read_info
from multas_ray.data.packing import unpack
from multas_ray.data.stream import ChunkLayout, make_chunk
from multas_ray.errors import UserError
import numpy as np

path = sys.argv[1]
one, bounds = np.zeros(1, np.int32), np.arange(2)
origin = Origin(path, classes={"det": 2, "seg": 3})
index = Index((origin,), ("train/part.parquet",), one, one, one, one, bounds, bounds, one.astype(np.uint8))
layout = ChunkLayout(EvaluationPlan(index, 1, 32), workers=1, start=0, length=1, augment=None, additions=())
for read in (
    lambda: read_index(path, "train"),
    lambda: read_row(index, 0),
    lambda: count(index, read_info(path), lambda rows: None),
    lambda: print(*unpack(next(make_chunk({"id": [0]}, layout)))),
):
    try:
        read()
    except UserError as error:
        print("refused:", error)
"""


class Marker:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


# Imports Ray Data, in a process of its own.
@pytest.mark.ray
@pytest.mark.parametrize("name", ["image_id", "height", "labels"])
def test_a_pickle_in_a_column_is_never_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    code = pa.array([pickle.dumps(Marker(marker))], pa.large_binary())
    # As Ray Data declares its pickled objects, without importing it here.
    about = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""}
    if name == "labels":
        inside = pa.field("item", pa.large_binary(), metadata=about)
        column, field = pa.ListArray.from_arrays([0, 1], code), pa.field(name, pa.list_(inside))
    else:
        column, field = code, pa.field(name, pa.large_binary(), metadata=about)
    table = table_of([row(0)])
    path = write_set(tmp_path / "set", table.set_column(table.column_names.index(name), field, column))
    command = [sys.executable, "-c", READ_ALL, path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    lines = done.stdout.splitlines()
    assert [line.startswith("refused:") for line in lines] == [True] * 3 + [False], done.stderr
    assert f"column '{name}' is of the type" in lines[0]
    assert lines[3].startswith("Failure(message=")
    assert not marker.exists()


def shrunk(table: pa.Table) -> bytes:
    """The footer of a table's file, and next to nothing of what it is about."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue()
    return data[:50] + data[-8 - int.from_bytes(data[-8:-4], "little") :]


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda: shrunk(table_of([row(0, image=b"", mask=b"")] * 20_000)), "bytes cannot be 20000 rows"),
        (lambda: table_of([row(0, labels=[0] * 10**6)]), r"bytes cannot be lists of 10000\d\d values"),
        (lambda: table_of([row(0, image=bytes(10**8))]), r"bytes cannot be 1 rows, of 1000\d+ bytes"),
        (lambda: b"", "not a readable Parquet file"),
        (lambda: b"PAR1" + bytes(100) + b"PAR1", "not a readable Parquet file"),
    ],
    ids=["rows", "values", "bytes", "empty", "zeros"],
)
def test_what_a_file_says_of_its_extent_is_not_believed(tmp_path: Path, lie: Callable, words: str) -> None:
    path = write_set(tmp_path, lie(), compression="zstd")
    with pytest.raises(UserError, match=words):
        read_index(path, "train")


def test_a_folder_in_place_of_a_shard_is_named(tmp_path: Path) -> None:
    path = write_set(tmp_path, table_of([row(0)]))
    (tmp_path / "train" / "a.parquet").mkdir()
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read \(a folder, device or pipe, not a file\)"):
        read_index(path, "train")


def outcome_of(path: str) -> str:
    """What becomes of a data set that may be broken."""
    try:
        index = read_index(path, "train")
        rejected = count(index, read_info(path), lambda rows: None).rejected
    except UserError:
        return "refused"
    for number in range(len(index)):
        try:
            read_sample(index, number)
        except UserError:
            return "refused"
        except Reject as reject:
            rejected.append(reject)
    return "rejected" if rejected else "right"


@pytest.mark.long
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("metadata", [None, to_metadata([[(3, 6)]])], ids=["counted", "stated"])
def test_flipped_and_lost_bytes_are_rejected_rows_or_refused_files(
    tmp_path: Path, compression: str, metadata: dict[bytes, bytes] | None
) -> None:
    table = table_of([row(number) for number in range(6)]).replace_schema_metadata(metadata)
    written = write_set(tmp_path, table, compression=compression)
    whole = (tmp_path / "train" / "part.parquet").read_bytes()
    chosen = random.Random(5)
    outcomes = {"right": 0, "rejected": 0, "refused": 0}
    for number in range(150):
        data = bytearray(whole)
        place = chosen.randrange(len(data))
        if number % 3:
            data[place] ^= 1 << chosen.randrange(8)
        else:
            del data[place : place + chosen.choice([1, 4, 200])]
        path = write_set(tmp_path / str(number), bytes(data))
        outcomes[outcome_of(path)] += 1
    assert min(outcomes.values()) > 0, outcomes
    read_index(written, "train")


def test_checksums_find_what_has_changed_in_numbers_too(tmp_path: Path) -> None:
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    path = write_set(tmp_path, table_of([row(0), row(1)]), **options)
    file = tmp_path / "train" / "part.parquet"
    data = bytearray(file.read_bytes())
    place = data.index(np.array([1, 2, 10, 12], np.float32).tobytes())
    data[place : place + 4] = np.float32(3).tobytes()
    file.write_bytes(data)
    with pytest.raises(UserError, match="could not verify page integrity"):
        read_row(read_index(path, "train"), 0)
