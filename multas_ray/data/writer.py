"""Writing of a data set: chunks of items are read and checked side by side, merged in order, judged, put in place."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from multas_ray.config import TASK_MASKS
from multas_ray.data.index import read_shard, shard_names
from multas_ray.data.publish import choose_folders, discard, first_number, folders_after, new_folder, publish, renames
from multas_ray.data.schema import DatasetInfo, read_info
from multas_ray.data.shard import LAYOUT, Record, Work
from multas_ray.data.spread import Chunk, write_chunks
from multas_ray.data.summary import Summary, judge_content, refusal, summarize
from multas_ray.data.unfinished import DATASET, REJECTED, STATE, Job, Request, Unfinished, asked_for
from multas_ray.documents import explain
from multas_ray.errors import UserError, first_line, one_line, quoted
from multas_ray.storage import StoragePath

if TYPE_CHECKING:
    from multas_ray.formats.source import Source

Records = dict[str, dict[int, Record]]
"""Records of each split's finished chunks, by their numbers."""
Advance = Callable[[str, int], None]


def write_dataset(
    path: str | Path,
    source: "Source",
    *,
    command: str = "",
    max_rejected: float = 0.01,
    overwrite: bool = False,
    add: bool = False,
    workers: int = 1,
    max_side: int | None = None,
    advance: Advance = lambda split, items: None,
) -> Summary:
    """Write a data set, or add splits, or rows to splits, to one with the same classes.

    The files depend on the source alone, not on the number of workers. A data set is seen once it is whole: a job that
    fails or is killed leaves the former one, or none, and its finished chunks beside it; the same call goes on from
    there. Memory holds the ids of the rows, and a row group of images a worker.

    Args:
        path: folder of the data set: local, or the URI of one in a bucket.
        source: images and annotation. With several workers they are read by other processes, on a cluster by other
            nodes.
        command: command line of the job, recorded in dataset.json.
        max_rejected: largest share of rejected rows, 0..1.
        overwrite: replace a data set at `path`, with all its splits.
        add: allow rows to be added to an existing split.
        workers: number of tasks that read and write at a time. One works in this process; more are Ray tasks of one CPU
            each, on the cluster of RAY_ADDRESS or a Ray that is started here.
        max_side: pixels; an image with a longer side is shrunk to it, with its boxes and mask. None: none is.
        advance: called with the name of a split and the number of its items that were read since the last call, or
            before it by the job that was killed.

    Raises:
        UserError: `path` cannot be written to, or has the unfinished work of another call, a class has no name, too
            many rows were rejected, or a split has none left.
        RunError: an item cannot be read for another reason than a `Reject`, or the process that reads it ends each
            time.
    """
    out = _usable(path)
    info = _description(source, command, out)
    request = asked_for(source, LAYOUT, command=command, max_side=max_side, add=add, overwrite=overwrite)
    unfinished = Unfinished(out)
    try:
        job = unfinished.job(request) or _begin(unfinished, request)
        works = {split: _work(unfinished, job, source, split) for split in source.splits}
        records = {split: unfinished.records(work) for split, work in works.items()}
        decided = unfinished.decided()
        if decided is None:
            _check_unchanged(unfinished, job)
            try:
                _write_rows(unfinished, job, source, works, records, workers, advance)
            except BaseException:
                if not any(records.values()):
                    # Tasks that end just now may be writing there.
                    with suppress(OSError):
                        discard(unfinished, job)
                raise
            decided = _decide(unfinished, job, info, works, records, max_rejected)
        publish(unfinished, job, decided)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or first_line(error)})") from None
    return summarize(_in_order(records))


def _usable(path: str | Path) -> StoragePath:
    """Parse `--out`, or raise a UserError."""
    if "://" not in str(path):
        try:
            out = Path(path).expanduser().resolve()
            out.exists()
            str(out).encode()
        # The home of an unknown user, a NUL, a name that is too long or not UTF-8.
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"--out {quoted(str(path))}: no usable path ({one_line(error, 100)})") from None
    try:
        return StoragePath(path)
    except UserError as error:
        raise UserError(f"--out {error}") from None


def _description(source: "Source", command: str, out: StoragePath) -> DatasetInfo:
    """Describe the new rows, not counted yet; a UserError where that is no description."""
    for split in source.splits:
        if (
            not split
            or split.startswith(".")
            or Path(split).name != split
            or len(split) > 100
            or not split.isprintable()
        ):
            raise UserError(f"split {quoted(split)}: a plain folder name is needed")
    try:
        return DatasetInfo(
            name=source.name,
            det_classes=list(source.classes["det"]),
            seg_classes=list(source.classes["seg"]),
            splits={split: {} for split in source.splits},
            source=source.about,
            command=command,
        )
    except ValidationError as error:
        raise UserError(f"{source.about or out}: {explain(error, DatasetInfo)}") from None


def _begin(unfinished: Unfinished, request: Request) -> Job:
    """Write down what is to be done.

    Raises:
        UserError: what is at the data set's place may be neither replaced nor added to.
    """
    out, splits = unfinished.out, list(request.items)
    before = _present(out, request)
    shards = {split: shard_names(out, before, split) for split in splits if before and split in before.splits}
    folders = choose_folders(unfinished, before, splits)
    job = Job(request=request, before=before, shards=shards, folders=folders)
    if not renames(unfinished, before):
        # What a killed job, whose state was deleted, has left in folders that no data set names.
        for split in splits:
            new_folder(unfinished, job, split).delete()
    unfinished.begin(job)
    return job


def _present(out: StoragePath, request: Request) -> DatasetInfo | None:
    """Read the description of the data set that splits or rows are added to; None for a new one.

    Raises:
        UserError: what is there may be neither replaced nor added to.
    """
    if not out.exists() or set(out.names()) <= {REJECTED, STATE}:
        return None
    if not (out / DATASET).exists():
        raise UserError(f"--out {out}: exists and is not a data set; it is left alone, choose another folder")
    if request.overwrite:
        return None
    info = read_info(out.uri)
    repeated = [split for split in request.items if split in info.splits]
    if repeated and not request.add:
        raise UserError(
            f"--out {out}: this data set already has {', '.join(repeated)}; --add adds rows to it, --overwrite "
            "replaces the data set"
        )
    if info.classes != request.classes:
        raise UserError(f"--out {out}: this data set has other classes ({', '.join(info.det_classes)})")
    return info


def _check_unchanged(unfinished: Unfinished, job: Job) -> None:
    """Raise a UserError if the data set is another one than when the job began."""
    if not job.request.overwrite and unfinished.present() != job.before:
        raise UserError(
            f"--out {unfinished.out}: has changed since this command was killed; delete {unfinished.place} and begin "
            "anew"
        )


def _work(unfinished: Unfinished, job: Job, source: "Source", split: str) -> Work:
    return Work(
        split=split,
        read=source.splits[split].read,
        classes={task: len(names) for task, names in source.classes.items()},
        max_side=job.request.max_side,
        folder=new_folder(unfinished, job, split).uri,
        first=first_number(unfinished, job, split),
        records=unfinished.records_of(split).uri,
        layout=job.request.layout,
    )


def _write_rows(
    unfinished: Unfinished,
    job: Job,
    source: "Source",
    works: Mapping[str, Work],
    records: Records,
    workers: int,
    advance: Advance,
) -> None:
    """Write the chunks that are not finished, and once more those with a row whose id an earlier row has.

    Which ids are taken is known only when all earlier chunks are read. Few chunks have such a row, if any.
    """
    every_item = {split: of.items for split, of in source.splits.items()}
    layout = job.request.layout

    def enter(chunk: Chunk, record: Record) -> None:
        records[chunk.work.split][chunk.number] = record

    new = []
    for split, work in works.items():
        for number in range(layout.chunks(every_item[split])):
            chunk = Chunk(work, number, every_item[split])
            if number in records[split]:
                advance(split, len(chunk.items))
            else:
                new.append(chunk)
    write_chunks(new, workers, enter, advance)
    again = [
        Chunk(work, number, every_item[split], frozenset(taken))
        for split, work in works.items()
        for number, taken in _taken(records[split], set(_stored_ids(unfinished.out, job.shards.get(split, ()))))
    ]
    write_chunks(again, workers, enter, lambda split, items: None)


def _taken(records: Mapping[int, Record], seen: set[str]) -> Iterator[tuple[int, set[str]]]:
    """Find the chunks that were written without regard to all ids that are taken; yield their numbers and these ids.

    Args:
        records: records of a split's chunks by number.
        seen: ids of the rows that the split had before; those of the chunks are added.
    """
    for number, record in sorted(records.items()):
        taken = seen.intersection((*record.ids, *record.refused))
        if taken != set(record.taken):
            yield number, taken
        seen.update(record.ids)


def _stored_ids(out: StoragePath, shards: Iterable[str]) -> Iterator[str]:
    """Yield the ids of the rows in some files of a data set."""
    for name in shards:
        try:
            ids = read_shard(out / name, lambda shard: shard.read(columns=["image_id"])["image_id"].to_pylist())
        except OSError as error:
            raise UserError(f"{out / name}: cannot be read ({first_line(error)})") from None
        yield from ids


def _in_order(records: Records) -> dict[str, list[Record]]:
    return {split: [record for _, record in sorted(of.items())] for split, of in records.items()}


def _decide(
    unfinished: Unfinished,
    job: Job,
    info: DatasetInfo,
    works: Mapping[str, Work],
    records: Records,
    max_rejected: float,
) -> DatasetInfo:
    """Judge what was written, and write down that it is to be put in place.

    Returns:
        Description of the whole data set.

    Raises:
        UserError: it is no data set; what was written is deleted, except the record of the rejected rows.
    """
    ordered = _in_order(records)
    summary = summarize(ordered)
    rejected = "".join(
        json.dumps(line) + "\n" for split in ordered.values() for record in split for line in record.rejected
    )
    try:
        _judge(summary, max_rejected, rejected, unfinished, info)
    except UserError:
        discard(unfinished, job)
        raise
    for split, work in works.items():
        _check_files(work, records[split])
    former = unfinished.out / REJECTED
    if job.before and former.exists():
        rejected = former.read_text() + rejected
    decided = _merged(job.before, info, summary, folders_after(unfinished, job))
    unfinished.decide(decided, rejected)
    return decided


def _check_files(work: Work, records: Mapping[int, Record]) -> None:
    """Check that a split's files are where this process finds them, and delete those of processes that were killed.

    Raises:
        UserError: a file is not there.
    """
    folder = StoragePath(work.folder)
    whole, found = {work.file(number).name for number, record in records.items() if record.rows}, set(folder.names())
    if whole - found:
        raise UserError(
            f"{folder / min(whole - found)}: written, and not there; on a cluster, --out is a folder that all nodes "
            "share, or a bucket"
        )
    for name in found - whole:
        (folder / name).delete()


def _judge(summary: Summary, max_rejected: float, rejected: str, unfinished: Unfinished, info: DatasetInfo) -> None:
    """Raise a UserError for what is no data set; where rows were rejected, it names the file that tells them."""
    reason = refusal(summary, max_rejected)
    if reason is None:
        judge_content(summary, info)
    elif not rejected:
        raise UserError(reason)
    else:
        record = unfinished.record_of_failure()
        record.write_text(rejected)
        raise UserError(f"{reason}; see {record}")


def _merged(
    before: DatasetInfo | None, new: DatasetInfo, summary: Summary, folders: dict[str, list[str]]
) -> DatasetInfo:
    """Describe a data set with its new rows."""
    if before is None:
        return new.model_copy(update={"splits": summary.rows, "folders": folders})
    counts = dict(before.splits)
    for split, rows in summary.rows.items():
        present = counts.get(split, {})
        total = {mask: present.get(mask, 0) + rows.get(mask, 0) for mask in TASK_MASKS}
        counts[split] = {mask: count for mask, count in total.items() if count}
    return before.model_copy(
        update={
            "schema_version": new.schema_version,
            "splits": counts,
            "folders": folders,
            "source": "; ".join(dict.fromkeys(filter(None, [before.source, new.source]))),
            "command": "; ".join(filter(None, [before.command, new.command])),
        }
    )
