"""State of a `write_dataset` that is not finished: what it is to do, and what of it is done.

A folder beside the data set, or in it where storage does not rename folders, holds job.json, a record for each
finished chunk, and, once nothing is left but to put the files in place, the dataset.json that will be. The same call
goes on from there, whenever the former one was killed.
"""

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from multas_ray.data.schema import SCHEMA_VERSION, DatasetInfo
from multas_ray.data.shard import Layout, Record, Work, read_record
from multas_ray.documents import read_model
from multas_ray.errors import UserError, one_line
from multas_ray.storage import StoragePath

if TYPE_CHECKING:
    from multas_ray.formats.source import Source

JOB, DATASET, REJECTED = "job.json", "dataset.json", "rejected.jsonl"
STATE = ".unfinished"
"""Name of the folder in a data set whose storage does not rename folders, and end of its name elsewhere."""
READERS = 32
"""Number of records that are read at a time: from a bucket, each is a wait of some tens of milliseconds."""


class Request(BaseModel):
    """What a call of `write_dataset` asks for; another one does not go on with its work."""

    model_config = ConfigDict(extra="forbid")

    command: str
    max_side: int | None
    add: bool
    overwrite: bool
    name: str
    about: str
    classes: dict[str, list[str]]
    items: dict[str, int]
    """Number of items of each split."""
    digest: str
    """SHA-256 of all items."""
    layout: Layout
    schema_version: int = SCHEMA_VERSION


class Job(BaseModel):
    """Content of job.json."""

    model_config = ConfigDict(extra="forbid")

    request: Request
    before: DatasetInfo | None
    """Description of the data set that splits or rows are added to; None for a new one."""
    shards: dict[str, list[str]]
    """Files of the splits that rows are added to, as paths in the data set."""
    folders: dict[str, str]
    """Name of the folder that takes the new files of each split."""


def asked_for(source: "Source", layout: Layout, **options: Any) -> Request:
    """Describe what a call asks for: its options, its source, and a digest of all items."""
    digest = hashlib.sha256()
    for split in source.splits.values():
        for number in range(layout.chunks(split.items)):
            # Chunk by chunk, so that no copy of all items is made.
            digest.update(pickle.dumps(layout.items(split.items, number), protocol=5))
    return Request(
        **options,
        name=source.name,
        about=source.about,
        classes={task: list(names) for task, names in source.classes.items()},
        items={name: len(split.items) for name, split in source.splits.items()},
        digest=digest.hexdigest(),
        layout=layout,
    )


@dataclass(frozen=True)
class Unfinished:
    """State of a data set that is being written."""

    out: StoragePath
    """The data set."""

    @property
    def place(self) -> StoragePath:
        """Folder of the state."""
        return self.out.with_name(f".{self.out.name}{STATE}") if self.out.local else self.out / STATE

    def records_of(self, split: str) -> StoragePath:
        """Return the folder of the records of a split's chunks."""
        return self.place / "records" / split

    def record_of_failure(self) -> StoragePath:
        """Return the file for the rejected rows of a job that fails by them; a data set keeps its own."""
        if not (self.out / DATASET).exists():
            return self.out / REJECTED
        return self.out.with_name(f"{self.out.name}.{REJECTED}") if self.out.local else self.out / f"failed.{REJECTED}"

    def job(self, request: Request) -> Job | None:
        """Read what is unfinished; None where nothing is.

        Raises:
            UserError: it is the work of another call.
        """
        if not (self.place / JOB).exists():
            return None
        job = read_model(self.place / JOB, Job)
        if job.request == request:
            return job
        # Without a data set, all that is there is unfinished.
        rest = self.out if job.before is None and not self.out.local else self.place
        if job.request.command != request.command:
            raise UserError(
                f"--out {self.out}: unfinished work of another command is there; go on with it "
                f"({one_line(job.request.command or 'without a command line', 300)}), or delete {rest}"
            )
        changed = [name for name in Request.model_fields if getattr(job.request, name) != getattr(request, name)]
        raise UserError(
            f"--out {self.out}: unfinished work of the same command is there, but its source or options have changed "
            f"since ({', '.join(changed)}); delete {rest} to begin anew"
        )

    def begin(self, job: Job) -> None:
        """Write what is to be done, in place of what an interrupted begin or end left behind."""
        self.place.delete()
        (self.place / JOB).write_text(job.model_dump_json(indent=1))

    def present(self) -> DatasetInfo | None:
        """Read the description of the data set that is at its place; None where there is none."""
        file = self.out / DATASET
        return read_model(file, DatasetInfo) if file.exists() else None

    def decide(self, info: DatasetInfo, rejected: str) -> None:
        """Write what is left to be put in place: from now on nothing else is to be done.

        Args:
            info: description of the whole data set.
            rejected: content of its rejected.jsonl.
        """
        (self.place / REJECTED).write_text(rejected)
        (self.place / DATASET).write_text(to_json(info))

    def decided(self) -> DatasetInfo | None:
        """Read what was decided; None before."""
        file = self.place / DATASET
        return read_model(file, DatasetInfo) if file.exists() else None

    def end(self) -> None:
        """Delete the state; job.json first, since the rest means nothing without it."""
        (self.place / JOB).delete()
        self.place.delete()

    def records(self, work: Work) -> dict[int, Record]:
        """Read the records of the finished chunks of a split, by the chunks' numbers in order."""
        numbers = [int(name.removesuffix(".json")) for name in StoragePath(work.records).names() if _is_record(name)]
        with ThreadPoolExecutor(READERS) as pool:
            found = zip(numbers, pool.map(lambda number: read_record(work.record(number)), numbers), strict=True)
            return {number: record for number, record in found if record is not None}


def _is_record(name: str) -> bool:
    stem, mark, end = name.partition(".")
    return stem.isdecimal() and mark + end == ".json"


def to_json(info: DatasetInfo) -> str:
    """Return the content of dataset.json."""
    return info.model_dump_json(indent=2) + "\n"
