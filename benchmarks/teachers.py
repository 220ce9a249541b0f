"""Benchmark of the cost of teachers to a student: its parts, one after another, and its tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import packing, placements, simulated
from multas_ray.ray_setup import cluster_cores, start_ray
from multas_ray.report.plots import scaling_curves
from multas_ray.terminal import terminal

COUNTS = (1, 2, 4, 8)
"""Numbers of student workers and of replicas in the scaling picture."""


def measure_teachers(out: Path, shared: Path, overrides: Sequence[str]) -> dict[str, float]:
    """Measure, print, and write teachers.json, teachers.md and teachers.png.

    Args:
        out: folder of the results; its folder `teachers` keeps the trained networks.
        shared: folder of the real images; without them, generated scenes are trained on.
        overrides: configuration values of the trainings by dotted path.

    Returns:
        Figures of benchmark.json.
    """
    folder = out / "teachers"
    images = placements.prepare_images(folder / "data", shared)
    print(f"on {images}", flush=True)
    start_ray(8)
    overlap = _overlap(folder / "data")
    scaling = _scaling(folder / "data")
    print("training two teachers and a student: some minutes", flush=True)
    placements.train_networks(folder, overrides)
    arms = [("pure", 1), ("inline", 1), ("pool", 1), ("pool", 2), ("stored", 1), ("original", 1)]
    costs = [placements.measure_placement(folder, overrides, *arm) for arm in arms]
    packed = packing.compare_packed(str(folder / "data"), *(str(folder / name) for name in ("det", "seg", "student")))

    rows = [{**asdict(cost), "ratio_to_pure": cost.images_per_s / costs[0].images_per_s} for cost in costs]
    step = f"{simulated.STEP_S * 1000:.0f}"
    tables = {
        f"Teachers beside a student: {images}, {placements.SIZE} px, {cluster_cores()} cores": rows,
        f"Simulated accelerators: a step sleeps {step} ms, an answer {simulated.ANSWER_S * 1000:.0f} ms": scaling,
    }
    for title, lines in tables.items():
        _show(title, lines)
    everything = {"images": images, "placements": rows, "overlap": overlap, "scaling": scaling, "packed": packed}
    (out / "teachers.json").write_text(json.dumps(everything, indent=1) + "\n")
    (out / "teachers.md").write_text("\n".join(_markdown(title, lines) for title, lines in tables.items()))
    rates = {r: {row["workers"]: row["images_per_s"] for row in scaling if row["replicas"] == r} for r in COUNTS}
    (out / "teachers.png").write_bytes(scaling_curves(rates, simulated.ROWS / simulated.STEP_S))
    print(
        f"packed targets at {packing.SIZE} px: {packed['packed_kb_per_image']:.1f} kB an image instead of "
        f"{packed['dense_kb_per_image']:.0f}; the gradients differ by {packed['class_grad_error']:.2%} (classes), "
        f"{packed['box_grad_error']:.2%} (boxes), {packed['seg_grad_error']:.2%} (segmentation)"
    )
    return {
        **{f"{cost.placement}_of_pure": row["ratio_to_pure"] for cost, row in zip(costs, rows, strict=True)},
        "overlap_ratio": overlap["overlap_ratio"],
        "overload_ratio": overlap["overload_ratio"],
        "packed_kb_per_image": packed["packed_kb_per_image"],
        "packed_grad_error": max(packed["class_grad_error"], packed["seg_grad_error"]),
        "packed_box_grad_error": packed["box_grad_error"],
    }


def _overlap(data: Path) -> dict[str, float]:
    """Measure two students with two replicas of each teacher: fast enough ones, and three times slower ones."""
    slow_s = 3 * simulated.ANSWER_S
    pools = [simulated.start_simulated_pool(seconds, 2, packing.SIZE) for seconds in (simulated.ANSWER_S, slow_s)]
    cases = [simulated.Case(pool, 2, warmup=20, steps=40) for pool in pools]
    enough, slow = simulated.simulate(str(data), packing.SIZE, 2, cases, parallel=2)
    figures = {
        "overlap_step_s": enough.step_s,
        "overlap_ratio": enough.step_s / simulated.STEP_S,
        "overload_step_s": slow.step_s,
        # A step has two requests to each teacher, one of each worker, and the two replicas answer side by side.
        "overload_ratio": slow.step_s / slow_s,
        "overload_worker_growth_mb": slow.memory_mb,
    }
    for name, seconds, outcome in (("overlap", simulated.STEP_S, enough), ("overload", slow_s, slow)):
        print(
            f"{name}: {seconds * 1000:.0f} ms can be had, a step takes {outcome.step_s * 1000:.1f} ms: "
            f"{figures[f'{name}_ratio']:.3f}x",
            flush=True,
        )
    return figures


def _scaling(data: Path) -> list[dict[str, Any]]:
    """Measure images a second of 1 to 8 students with 1 to 8 replicas of each teacher; a row for each combination."""
    pool = simulated.start_simulated_pool(simulated.ANSWER_S, max(COUNTS), placements.SIZE)
    rows = []
    for workers in COUNTS:
        # The requests that are sent ahead are a head start: twelve steps use it up.
        cases = [simulated.Case(pool, replicas, warmup=12, steps=12) for replicas in COUNTS]
        outcomes = simulated.simulate(str(data), placements.SIZE, workers, cases, parallel=2)
        for case, outcome in zip(cases, outcomes, strict=True):
            waits = {"data_wait_s": outcome.data_wait_s, "teacher_wait_s": outcome.teacher_wait_s}
            rate = workers * simulated.ROWS / outcome.step_s
            rows.append({"workers": workers, "replicas": case.replicas, "images_per_s": rate} | waits)
        print(f"simulated {workers} student(s)", flush=True)
    return rows


HEADINGS = {
    "images_per_s": "images/s",
    "step_s": "step [ms]",
    "teacher_wait_s": "teacher wait [ms]",
    "data_wait_s": "data wait [ms]",
    "ratio_to_pure": "of pure",
}
"""Headings of columns by the names of their figures."""


def _show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(*_headings(rows), title=title)
    for row in rows:
        table.add_row(*_cells(row))
    terminal().print(table)


def _markdown(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [_headings(rows), ["---"] * len(rows[0]), *map(_cells, rows)]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _headings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [HEADINGS.get(name, name) for name in rows[0]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = {name: "" if value is None else str(value) for name, value in row.items()}
    for name, heading in HEADINGS.items():
        if name in row:
            scale, digits = (1000, 1) if "[ms]" in heading else (1, 2 if name.startswith("ratio") else 1)
            cells[name] = f"{scale * row[name]:.{digits}f}"
    return list(cells.values())
