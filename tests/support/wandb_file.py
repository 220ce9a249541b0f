"""Reads the file of an offline W&B run: LevelDB's log framing around protobuf records. A private format: tests only."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_offline(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0 and length == 0:
            position += left
            continue
        chunk = data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind == FULL:
            yield wandb_internal_pb2.Record.FromString(chunk)
        elif kind == LAST:
            yield wandb_internal_pb2.Record.FromString(parts + chunk)
            parts = b""
        else:
            parts = chunk if kind == FIRST else parts + chunk


def finished_records(file: Path) -> list:
    """The records of an offline run, once W&B's own process has written the last of them."""
    end = time.monotonic() + 60
    while True:
        records = list(read_offline(file))
        if any(record.WhichOneof("record_type") == "exit" for record in records) or time.monotonic() > end:
            return records
        time.sleep(0.2)
