"""Measure this machine, or this cluster. Every figure is printed, and added to benchmark.json in the output folder.

python jobs/benchmark.py loss        the detection loss, the model presets
python jobs/benchmark.py teachers    what teachers cost a student: inline, in a pool, stored; simulated accelerators
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from multas_ray.benchmark.losses import PRECISION, SIZE, STEP_BATCH, compare_losses, compare_presets
from multas_ray.benchmark.teachers import measure_teachers
from multas_ray.benchmark.timing import write_figures
from multas_ray.job import Parser, run_job

THREADS = 1


def loss(out: Path, overrides: Sequence[str]) -> dict[str, float]:
    """The detection loss against the published way and its floor; the step of the paper's preset against ours."""
    figures: dict[str, float] = {}
    table = Table("images", "batched", "per image", "focal loss alone", "speed-up", "of the floor")
    table.title = f"Detection loss, {SIZE} px, forward and backward, {THREADS} thread, milliseconds"
    for batch, repeats in ((1, 20), (16, 3)):
        seconds = compare_losses(batch, repeats)
        speedup = seconds["per image"] / seconds["batched"]
        figures[f"batch{batch}_speedup"] = speedup
        figures[f"batch{batch}_of_floor"] = seconds["batched"] / seconds["focal loss alone"]
        cells = [f"{1000 * value:.1f}" for value in seconds.values()]
        table.add_row(str(batch), *cells, f"{speedup:.2f}x", f"{figures[f'batch{batch}_of_floor']:.2f}x")
    Console().print(table)

    table = Table("preset", "million parameters", "GMACs an image", "step, seconds")
    table.title = f"Presets: ResNet-18, {SIZE} px, both tasks, batch {STEP_BATCH}, {PRECISION}, {THREADS} thread"
    facts = compare_presets()
    for preset, values in facts.items():
        table.add_row(
            preset, f"{values['million_parameters']:.1f}", f"{values['gmacs']:.1f}", f"{values['step_s']:.2f}"
        )
        figures |= {f"{preset}_{name}": value for name, value in values.items()}
    figures["preset_step_ratio"] = facts["paper"]["step_s"] / facts["default"]["step_s"]
    Console().print(table)
    print(f"a step of the paper's preset takes {figures['preset_step_ratio']:.1f} times as long as the default's")
    return figures


def teachers(out: Path, overrides: Sequence[str]) -> dict[str, float]:
    """What teachers cost a student."""
    shared = Path(os.environ.get("MULTAS_SHARED", Path(__file__).parent.parent.parent / "shared"))
    return measure_teachers(out, shared, overrides)


BENCHMARKS = {"loss": loss, "teachers": teachers}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHMARKS, help="what to measure")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of benchmark.json")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="of the trainings of `teachers`")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(THREADS)
    out = arguments.out.resolve()
    print(write_figures(out, arguments.bench, BENCHMARKS[arguments.bench](out, arguments.overrides)))


if __name__ == "__main__":
    run_job(main)
