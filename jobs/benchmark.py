"""Measure this machine, or this cluster. Every figure is printed, and added to benchmark.json in the output folder.

python jobs/benchmark.py loss        the detection loss, the model presets
python jobs/benchmark.py teachers    what teachers cost a student: inline, in a pool, stored; simulated accelerators
python jobs/benchmark.py step        a step of the default student on a CPU, against another checkout of this project
python jobs/benchmark.py data        the data stream against a PyTorch DataLoader; what a training waits for data
python jobs/benchmark.py overhead    the job against a bare PyTorch loop, two workers against one
python jobs/benchmark.py memory      10 GB of images through an object store of 512 MB; no wait where an epoch begins
python jobs/benchmark.py backbones   parameters, multiplications and time of backbones
python jobs/benchmark.py index       index and plan of a billion rows in a million row groups: their memory and time
"""

import argparse
import os
import sys
from pathlib import Path
from statistics import median

from rich.table import Table

# The benchmarks are no part of the installed package, and a script finds only what lies beside it. At the end of the
# path, so that `multas_ray` is the one that all other jobs and Ray's workers import.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import write_figures
from multas_ray.cli import Parser, run_job
from multas_ray.terminal import terminal

THREADS = 1
"""Number of CPU threads of PyTorch in this process."""


def loss(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the detection loss against the published way and its floor, and a step of both presets."""
    from benchmarks.losses import SIZE, STEP_BATCH, compare_losses, compare_presets

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
    terminal().print(table)

    table = Table("preset", "million parameters", "GMACs an image", "step, seconds")
    table.title = f"Presets: ResNet-18, {SIZE} px, both tasks, batch {STEP_BATCH}, {THREADS} thread"
    facts = compare_presets()
    for preset, values in facts.items():
        table.add_row(
            preset, f"{values['million_parameters']:.1f}", f"{values['gmacs']:.1f}", f"{values['step_s']:.2f}"
        )
        figures |= {f"{preset}_{name}": value for name, value in values.items()}
    figures["preset_step_ratio"] = facts["paper"]["step_s"] / facts["default"]["step_s"]
    terminal().print(table)
    print(f"a step of the paper's preset takes {figures['preset_step_ratio']:.1f} times as long as the default's")
    return figures


def teachers(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the cost of teachers to a student."""
    from benchmarks.teachers import measure_teachers

    return measure_teachers(arguments.out, shared_folder(), arguments.overrides)


def data(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the data stream against a DataLoader, and the wait of a training for its data."""
    from benchmarks import loading
    from benchmarks.placements import CAMERA_SIDES, prepare_camera_images, prepare_images
    from multas_ray.ray_setup import start_ray

    images, camera = arguments.out / "images", arguments.out / "camera"
    print(f"on {prepare_images(images, shared_folder())}, {loading.SIZE} px, {loading.PROCESSES} processes", flush=True)
    prepare_camera_images(camera, images)
    table = Table("part of the work", "as they are", f"of {CAMERA_SIDES[0]} x {CAMERA_SIDES[1]} pixels")
    table.title = "One process, without Ray, milliseconds an image"
    stages = {name: loading.stage_seconds(str(path)) for name, path in (("image", images), ("camera_image", camera))}
    for part in stages["image"]:
        table.add_row(part, *(f"{1000 * seconds[part]:.2f}" for seconds in stages.values()))
    terminal().print(table)
    start_ray(8)
    rates = loading.compare_loading(str(images))
    ratio, wait = loading.ratio(rates), loading.train_data_wait(images, arguments.out / "data")
    stream, loader = (median(values) for values in rates.values())
    print(f"stream {stream:.0f} images/s, DataLoader {loader:.0f}: {ratio:.2f} of it")
    print(f"a training on the CPU waits for data {wait:.2%} of a step")
    milliseconds = {f"{name}_ms": 1000 * seconds["all of a batch"] for name, seconds in stages.items()}
    return {"ratio_to_dataloader": ratio, "train_data_wait": wait} | milliseconds


def overhead(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the overhead of Ray in a training, and the gain by a second worker."""
    from benchmarks.overhead import BATCH, compare_rates, overhead_figures
    from benchmarks.placements import prepare_images

    images = arguments.out / "images"
    print(f"on {prepare_images(images, shared_folder())}: about 20 minutes", flush=True)
    rates = compare_rates(images, arguments.out / "overhead", arguments.overrides)
    table = Table("", "images/s", "of the bare loop", title=f"ResNet-18, 320 px, {BATCH} images a worker, one thread")
    alone = median(rates["bare loop"])
    for name, values in rates.items():
        table.add_row(name, f"{median(values):.2f}", f"{median(values) / alone:.2f}")
    terminal().print(table)
    figures = overhead_figures(rates)
    print("\n".join(f"{name}: {value:.3f}" for name, value in figures.items()))
    return figures


def memory(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the memory of a training on a data set that outgrows it, and its wait at the start of an epoch."""
    from benchmarks import memory as out_of_core
    from multas_ray.ray_setup import start_ray

    large, small = (arguments.out / name for name in ("large", "small"))
    gigabytes = out_of_core.repeat_scenes(large, out_of_core.LARGE, out_of_core.LARGE_SIDE)
    out_of_core.repeat_scenes(small, out_of_core.SMALL, out_of_core.SMALL_SIDE)
    start_ray(object_store=out_of_core.OBJECT_STORE)
    print(f"{gigabytes:.1f} GB in {out_of_core.COPIES} shards, {out_of_core.LARGE_STEPS} steps", flush=True)
    samples, read = out_of_core.train_on_large(large, arguments.out / "memory")
    halves = [
        (name, pair)
        for (_, name), values in samples.unshared.items()
        if (pair := out_of_core.peaks(values, out_of_core.LARGE_STEPS))
    ]
    table = Table("process", "peak, first half", "second half", title="Memory that a process shares with no other, MB")
    for name, pair in sorted(halves, key=lambda item: -max(item[1])):
        table.add_row(name, *(f"{value:.0f}" for value in pair))
    terminal().print(table)
    store = max(used for _, used in samples.store)
    print(f"{read:.1f} GB of images read; object store: at most {store:.0f} MB, {samples.spilled:.0f} MB spilled")
    waits = out_of_core.waits_at_epochs(small, arguments.out / "epochs")
    print(", ".join(f"{name}: {seconds:.4f} s" for name, seconds in waits.items()))
    return {
        "data_gb": gigabytes,
        "read_gb": read,
        "store_peak_mb": store,
        "spilled_mb": samples.spilled,
        "largest_process_mb": max(max(pair) for _, pair in halves),
        "largest_growth_mb": max(second - first for _, (first, second) in halves),
        "epoch_start_wait": waits["first batch of an epoch"] / waits["step"],
    }


def index(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure index and plan of a billion rows that are nowhere."""
    from benchmarks import index as synthetic

    print(f"{synthetic.ROWS:,} rows in {synthetic.GROUPS:,} row groups of {synthetic.FILES:,} files", flush=True)
    figures = synthetic.measure_index(arguments.out)
    table = Table("figure", "value", title="Index and plan")
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}")
    terminal().print(table)
    return figures


def step(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure a training step on a CPU, in each precision that its instructions compute."""
    import torch

    from benchmarks.placements import prepare_images
    from benchmarks.step import BATCH, SIZE, measure_steps, variants
    from multas_ray.model.precision import has_bfloat16

    images = arguments.out / "images"
    precisions = ["float32", *(["bfloat16"] if has_bfloat16(torch.device("cpu")) else [])]
    print(f"on {prepare_images(images, shared_folder())}: two minutes or three", flush=True)
    table = Table("", "ms", "forward, losses", "backward, optimiser", "images/s")
    table.title = f"A step of {BATCH} images of {SIZE} px, {torch.backends.cpu.get_cpu_capability()}, one thread"
    figures: dict[str, float] = {}
    for name, times in measure_steps(images, variants(precisions, arguments.against)).items():
        cells = (times.whole, times.forward, times.whole - times.forward, times.images_per_s)
        table.add_row(name, *(f"{value:.1f}" for value in cells))
        figures[f"{name} ms"] = times.whole
    terminal().print(table)
    return figures


def backbones(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure a network for both tasks with each of some backbones."""
    from benchmarks.backbones import BATCH, NAMES, SIZE, measure_backbones

    table = Table("backbone", "million parameters", "GMACs an image", "forward, ms", "forward and backward, ms")
    table.title = f"Both tasks, {SIZE} px, float32, {BATCH} images, {THREADS} thread; milliseconds an image"
    figures: dict[str, float] = {}
    for name, values in measure_backbones(arguments.names or NAMES).items():
        table.add_row(name, *(f"{value:.1f}" for value in values.values()))
        figures |= {f"{name} {figure}": value for figure, value in values.items()}
    terminal().print(table)
    return figures


def shared_folder() -> Path:
    """Return the folder of the real images."""
    return Path(os.environ.get("MULTAS_SHARED", Path(__file__).parent.parent.parent / "shared"))


def main() -> None:
    """Parse the command line, run its benchmark, and write the figures."""
    common = Parser(add_help=False)
    common.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of benchmark.json")
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benches = parser.add_subparsers(dest="bench", required=True)
    sub = benches.add_parser("loss", parents=[common], help="the detection loss, the model presets")
    sub.set_defaults(measure=loss)
    sub = benches.add_parser("teachers", parents=[common], help="teachers inline, in a pool, stored")
    sub.add_argument("overrides", nargs="*", metavar="path=value", help="configuration values of the trainings")
    sub.set_defaults(measure=teachers)
    sub = benches.add_parser("step", parents=[common], help="a training step on a CPU")
    sub.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, measured in turns with this one")
    sub.set_defaults(measure=step)
    sub = benches.add_parser("data", parents=[common], help="the data stream, a PyTorch DataLoader")
    sub.set_defaults(measure=data)
    sub = benches.add_parser("overhead", parents=[common], help="the job, a bare PyTorch loop, two workers")
    sub.add_argument("overrides", nargs="*", metavar="path=value", help="configuration values of the trainings")
    sub.set_defaults(measure=overhead)
    sub = benches.add_parser("memory", parents=[common], help="a data set that outgrows the memory")
    sub.set_defaults(measure=memory)
    sub = benches.add_parser("backbones", parents=[common], help="networks with different backbones")
    sub.add_argument("names", nargs="*", metavar="NAME", help="backbones (default: nine of all families)")
    sub.set_defaults(measure=backbones)
    sub = benches.add_parser("index", parents=[common], help="index and plan of a billion rows")
    sub.set_defaults(measure=index)
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()

    import torch

    torch.set_num_threads(THREADS)
    print(write_figures(arguments.out, arguments.bench, arguments.measure(arguments)))


if __name__ == "__main__":
    run_job(main)
