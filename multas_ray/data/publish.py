"""The last step of writing a data set: its files are put in their places, and dataset.json is written.

On a disk, folders and files are renamed. Where storage does not rename folders, files are written in their places from
the start, into folders that the dataset.json which is there does not name; it is replaced in one step. Either way the
former data set stays usable until then. Each step may be done again, after it was killed in the middle.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from multas_ray.data.schema import DatasetInfo
from multas_ray.data.unfinished import DATASET, REJECTED, STATE, Job, Unfinished, to_json
from multas_ray.storage import StoragePath

DATA, FORMER = "data", "former"
"""Folders in the state of a data set on a disk: the new files; what they replace, until it is deleted."""


def renames(unfinished: Unfinished, before: DatasetInfo | None) -> bool:
    """Whether folders are renamed: on a disk, except where a split is in several folders, as copied from a bucket."""
    return unfinished.out.local and not (before and before.folders)


def new_folder(unfinished: Unfinished, job: Job, split: str) -> StoragePath:
    """Return the folder that takes a split's new files."""
    if renames(unfinished, job.before):
        return unfinished.place / DATA / split
    return unfinished.out / job.folders[split]


def first_number(unfinished: Unfinished, job: Job, split: str) -> int:
    """Return the number of the first new file of a split: above those of the files that are in its folder."""
    if not renames(unfinished, job.before):
        return 0
    numbers = [re.fullmatch(r".*/part-(\d{1,9})\.parquet", name) for name in job.shards.get(split, ())]
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def choose_folders(unfinished: Unfinished, before: DatasetInfo | None, splits: Iterable[str]) -> dict[str, str]:
    """Choose the name of each split's folder: its own, or the first of `<split>-1`, … that no rows are in."""
    if renames(unfinished, before):
        return {split: split for split in splits}
    if before is None:
        used = set(unfinished.out.names())
    else:
        used = {folder for split in before.splits for folder in before.folders_of(split)}
    chosen: dict[str, str] = {}
    for split in splits:
        names = (split, *(f"{split}-{number}" for number in range(1, len(used) + len(chosen) + 2)))
        chosen[split] = next(name for name in names if name not in used and name not in chosen.values())
    return chosen


def folders_after(unfinished: Unfinished, job: Job) -> dict[str, list[str]]:
    """Return the folders of all splits that are not in the folder of their name alone."""
    if renames(unfinished, job.before):
        return {}
    folders = dict(job.before.folders) if job.before else {}
    for split, new in job.folders.items():
        present = job.before.folders_of(split) if job.before and split in job.before.splits else []
        folders[split] = [*present, new]
    return {split: names for split, names in folders.items() if names != [split]}


def discard(unfinished: Unfinished, job: Job) -> None:
    """Delete what was written, and the state."""
    for split in job.request.items:
        new_folder(unfinished, job, split).delete()
    unfinished.end()


def publish(unfinished: Unfinished, job: Job, info: DatasetInfo) -> None:
    """Put the files of a finished data set in their places, and delete the state."""
    if not renames(unfinished, job.before):
        _in_place(unfinished, job, info)
    elif job.before is None:
        _replace(unfinished)
    else:
        _add(unfinished, job)
    unfinished.end()


def _replace(unfinished: Unfinished) -> None:
    """Rename the folder of new files to the data set's name, in place of what may be replaced."""
    out, state = Path(unfinished.out), Path(unfinished.place)
    if not (state / DATA).exists():
        return  # done before
    for name in (REJECTED, DATASET):
        _put(state, name, state / DATA)
    _set_aside(out, state / FORMER)
    (state / DATA).rename(out)


def _add(unfinished: Unfinished, job: Job) -> None:
    """Move new splits, and new files of splits that are there, into a data set; dataset.json comes last."""
    assert job.before
    out, state = Path(unfinished.out), Path(unfinished.place)
    for split in job.request.items:
        new = state / DATA / split
        if split in job.before.splits:
            for file in sorted(new.iterdir()):
                file.rename(out / split / file.name)
        elif new.exists():
            # A folder that dataset.json does not list is the rest of a killed job.
            _set_aside(out / split, state / FORMER)
            new.rename(out / split)
    for name in (REJECTED, DATASET):
        _put(state, name, out)


def _set_aside(folder: Path, former: Path) -> None:
    """Rename a folder, if it is there. What was set aside before it was replaced already."""
    if folder.exists():
        shutil.rmtree(former, ignore_errors=True)
        folder.rename(former)


def _put(state: Path, name: str, folder: Path) -> None:
    """Copy a file of the state into a folder, in one step."""
    copy = state / "copy"
    shutil.copyfile(state / name, copy)
    copy.replace(folder / name)


def _in_place(unfinished: Unfinished, job: Job, info: DatasetInfo) -> None:
    """Write dataset.json, which makes the new files a part of the data set; then delete what it does not name."""
    out = unfinished.out
    (out / REJECTED).write_text((unfinished.place / REJECTED).read_text())
    (out / DATASET).write_text(to_json(info))
    if job.before is None:
        kept = {DATASET, REJECTED, STATE, *(folder for split in info.splits for folder in info.folders_of(split))}
        for name in out.names():
            if name not in kept:
                (out / name).delete()
