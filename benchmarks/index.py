"""Benchmark of index and plan at a size that no disk here holds: their memory, and the time for the rows of a batch.

The index is made up; its files need not exist, since a plan reads none. Driver and data task are processes of their
own, so that their memory is that of index and plan, and of what these import.
"""

import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np

from multas_ray.config import TASK_MASKS
from multas_ray.data.index import Index, Origin
from multas_ray.data.plan import Plan, lay_plan

ROWS, GROUPS, FILES = 10**9, 10**6, 62_500
"""Rows, row groups and files of the split."""
RUNS = 4
"""Most runs of rows of one kind in a row group."""
MIXING: dict[str, int] = {"det": 96, "seg": 96, "both": 64}
"""Rows of each task mask in a batch."""
WORKERS = 8
PARTS = 1000
"""Number of parts that are timed."""
MB = 1e6


def made_up_index(rows: int = ROWS, groups: int = GROUPS, files: int = FILES) -> Index:
    """Make an index of files that do not exist, with as many rows in each row group, sorted by kind."""
    random = np.random.default_rng(0)
    size = rows // groups
    block_starts = np.arange(groups + 1) * size
    cuts = np.sort(random.integers(1, size, (groups, RUNS - 1)), axis=1)
    run_starts = np.concatenate([block_starts[:-1, None], block_starts[:-1, None] + cuts], axis=1).ravel()
    kinds = np.tile(np.arange(RUNS, dtype=np.uint8), groups)
    # Cuts may coincide: no run is empty.
    some = np.diff(run_starts, append=rows) > 0
    return Index(
        origins=(Origin("nowhere"),),
        origin=np.zeros(files, np.uint16),
        files=tuple(f"train/part-{number:05d}.parquet" for number in range(files)),
        file=np.repeat(np.arange(files, dtype=np.int32), groups // files),
        group=np.tile(np.arange(groups // files, dtype=np.int32), files),
        offset=np.zeros(groups, np.int32),
        block_starts=block_starts,
        run_starts=np.append(run_starts[some], rows),
        kinds=kinds[some],
    )


def measure_index(folder: Path) -> dict[str, float]:
    """Lay a plan in one process, and compute its parts in another.

    Args:
        folder: folder of the file in which the plan goes from one to the other, as it goes through the object store.

    Returns:
        Figures of `lay` and of `compute_parts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan"
    try:
        return _alone(lay, file) | _alone(compute_parts, file)
    finally:
        file.unlink(missing_ok=True)


def _alone(measure: Callable[[Path], dict[str, float]], file: Path) -> dict[str, float]:
    """Measure in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(measure, file).result()


def lay(file: Path) -> dict[str, float]:
    """Lay a plan as a driver does, and write it to a file.

    Returns:
        `array_mb`, size of the arrays of index and plan; `driver_mb_added`, the most memory at a time since there is an
        index; `plan_s`, seconds to lay the plan.
    """
    before = peak_mb()
    index = made_up_index()
    began = perf_counter()
    plan = lay_plan(index, usable=TASK_MASKS, mixing=MIXING, batch_size=0, steps=10**7, seed=0, sizes=[320], window=16)
    seconds = perf_counter() - began
    with file.open("wb") as stream:
        pickle.dump(plan, stream, protocol=5)
    return {"array_mb": array_mb(plan), "driver_mb_added": peak_mb() - before, "plan_s": seconds}


def compute_parts(file: Path) -> dict[str, float]:
    """Read a plan as a data task does, and compute the parts of one worker: of steps in a row, and anywhere.

    Returns:
        `first_batch_s`, seconds until the first part's rows are known; `part_ms_median` and `part_ms_p95` of the parts
        of steps in a row, `part_anywhere_ms_median` of parts anywhere; `task_mb`, the most memory at a time, and
        `task_mb_added`, the same without what the imports take.
    """
    before = peak_mb()
    began = perf_counter()
    with file.open("rb") as stream:
        plan: Plan = pickle.load(stream)
    milliseconds(plan, 0)
    figures = {"first_batch_s": perf_counter() - began}
    middle = int(plan.steps_per_epoch / 2)
    in_a_row = [milliseconds(plan, step) for step in range(middle, middle + PARTS)]
    drawn = np.random.default_rng(0).integers(0, int(plan.steps_per_epoch), PARTS).tolist()
    anywhere = [milliseconds(plan, step) for step in drawn]
    return figures | {
        "part_ms_median": float(np.median(in_a_row)),
        "part_ms_p95": float(np.percentile(in_a_row, 95)),
        "part_anywhere_ms_median": float(np.median(anywhere)),
        "task_mb": peak_mb(),
        "task_mb_added": peak_mb() - before,
    }


def milliseconds(plan: Plan, step: int) -> float:
    """Measure the time of one worker's part of a step, and of finding its rows."""
    began = perf_counter()
    plan.index.locate(plan.part(step, 0, WORKERS).rows)
    return 1000 * (perf_counter() - began)


def array_mb(plan: Plan) -> float:
    """Return the size of the arrays of a plan and its index."""
    sets = [array for group in plan.groups for array in (group.starts, group.rows.starts, group.rows.sums)]
    arrays = [*sets, *(value for value in vars(plan.index).values() if isinstance(value, np.ndarray))]
    return sum(array.nbytes for array in arrays) / MB


def peak_mb() -> float:
    """Return the largest memory that this process has had at a time, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024 / MB
