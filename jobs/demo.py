"""The whole story on generated scenes, in minutes on two cores.

Scenes of which half have boxes only and half have masks only; a detection and a segmentation teacher; a multi-task
student without and one with distillation through the Ray teacher pool; one table, one report.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multas_ray.cli import Parser, run_job
from multas_ray.errors import UserError

if TYPE_CHECKING:
    from multas_ray.config import Config

ARMS = {"det": ["det"], "seg": ["seg"], "mtl": ["det", "seg"], "kd": ["det", "seg"]}
"""Tasks of each arm. The first two are the teachers of the last."""
TRAIN_SCENES, VAL_SCENES = 1600, 200
SIZE = 96
"""Side of the scenes and of the networks' input in pixels."""
TEACHER_STEPS, STUDENT_STEPS = 280, 440
PICTURES = 8
"""Number of validation scenes in the overlays."""


def main() -> None:
    """Parse the command line, make the data, train the arms, and write table, report and overlays."""
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder, made anew (default runs/demo)")
    out: Path = parser.parse_args().out

    from multas_ray.console import print_results
    from multas_ray.ray_setup import start_ray

    if out.exists():
        if not (out / "data" / "dataset.json").exists():
            raise UserError(f"--out {out}: exists and is not an earlier demo's; choose another folder")
        shutil.rmtree(out)
    make_data(out / "data")
    start_ray(8)
    results = train_side_by_side([arm(out, "det"), arm(out, "seg")])
    results |= train_side_by_side([arm(out, "mtl"), arm(out, "kd")])
    (out / "result.json").write_text(json.dumps({"arms": summary(results)}, indent=1) + "\n")
    report(out, results)
    print_results(results, title=f"{VAL_SCENES} validation scenes")
    print(f"{out / 'report.html'}: curves and pictures\n{out / 'overlays.png'}: ground truth beside every arm")


def make_data(path: Path) -> None:
    """Write the scenes: half of the training images keep only their boxes, half only their masks."""
    from multas_ray.data.writer import write_dataset
    from multas_ray.formats import scenes

    options = scenes.Options(train=TRAIN_SCENES, val=VAL_SCENES, size=SIZE, partial={"det": 0.5, "seg": 0.5})
    write_dataset(path, replace(scenes.read(options), name="demo scenes"), command="python jobs/demo.py")


def arm(out: Path, name: str) -> Config:
    """Configure an arm."""
    from multas_ray.config_file import load_config

    steps = TEACHER_STEPS if name in ("det", "seg") else STUDENT_STEPS
    settings = [
        f"data.path={out / 'data'}",
        f"data.size={SIZE}",
        f"model.tasks=[{','.join(ARMS[name])}]",
        f"train.run={out / name}",
        f"train.steps={steps}",
        f"evaluate.every_steps={steps // 2}",
    ]
    if name == "kd":
        settings += [f"teachers.{task}.checkpoint={out / task}" for task in ("det", "seg")]
    return load_config(Path(__file__).parent / "configs" / "demo.yaml", settings)


def train_side_by_side(configs: Sequence[Config]) -> dict[str, dict[str, Any]]:
    """Train runs at the same time, each with its own Ray Train workers; return the results by arm."""
    from multas_ray.console import follow
    from multas_ray.train.run import train

    with follow(configs), ThreadPoolExecutor(len(configs)) as threads:
        results = list(threads.map(train, configs))
    return {Path(config.train.run).name: result for config, result in zip(configs, results, strict=True)}


def summary(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return each arm's final metrics and seconds."""
    return {name: {**result["final"], "seconds": result["seconds"]} for name, result in results.items()}


def report(out: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the picture of overlays and the report."""
    from multas_ray.evaluate.scores import HEADLINE
    from multas_ray.report.html import Page
    from multas_ray.report.plots import class_bars, learning_curves
    from multas_ray.run_folder import read_metrics

    draw_overlays(out)
    curves = {name: read_metrics(out / name) for name in results}
    rows = [
        {"arm": name, **{key: f"{metrics[key]:.1f}" if key in metrics else "" for key in (*HEADLINE, "seconds")}}
        for name, metrics in summary(results).items()
    ]
    page = Page(
        title="multas-ray demo",
        intro=f"{TRAIN_SCENES} generated scenes, half annotated with boxes only and half with masks only; "
        f"scored on {VAL_SCENES} scenes that no arm has seen. det and seg are single-task networks and the teachers of "
        "kd; mtl is the multi-task network without distillation; kd is the same with the missing annotations distilled "
        "from the teachers through the Ray actor pool.",
        tables={"Results": rows},
        figures={
            "Learning curves": learning_curves(curves),
            "By class": class_bars({name: result["final"] for name, result in results.items()}),
        },
        pictures={"Validation scenes": (out / "overlays.png").read_bytes()},
    )
    (out / "report.html").write_text(page.html())


def draw_overlays(out: Path) -> None:
    """Draw some validation scenes: ground truth, single-task, multi-task, distilled."""
    from multas_ray.checkpoint.weights import load_network
    from multas_ray.config import EvaluateConfig
    from multas_ray.data.index import read_index
    from multas_ray.data.read import read_sample
    from multas_ray.formats import scenes
    from multas_ray.report.overlays import draw_prediction, draw_truth, predict_rows
    from multas_ray.report.pictures import Palette, grid

    index = read_index(str(out / "data"), "val")
    networks = {name: load_network(str(out / name)) for name in ARMS}
    palette = Palette(scenes.CLASSES, ["background", *scenes.CLASSES])
    predictions = {
        name: [prediction for _, prediction in predict_rows(network, index, range(PICTURES), SIZE, EvaluateConfig())]
        for name, (network, _) in networks.items()
    }
    rows = []
    for row in range(PICTURES):
        single = {**predictions["det"][row], **predictions["seg"][row]}
        shown = [single, predictions["mtl"][row], predictions["kd"][row]]
        _, sample = read_sample(index, row)
        pixels = sample["image"].pixels()
        drawn = [draw_prediction(pixels, prediction, palette) for prediction in shown]
        rows.append([draw_truth(sample, palette), *drawn])
    titles = ["ground truth", "single-task (det, seg)", "multi-task (mtl)", "distilled (kd)"]
    (out / "overlays.png").write_bytes(grid(rows, titles, palette))


if __name__ == "__main__":
    run_job(main)
