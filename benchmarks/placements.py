"""Benchmark of the cost of teachers to a student's training: without teachers, inline, in a pool, stored."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from multas_ray.config import Config
from multas_ray.config_file import parse_config
from multas_ray.data.image import decode_rgb
from multas_ray.data.pillow import encode
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.data.writer import write_dataset
from multas_ray.formats import holdout, scenes, voc
from multas_ray.formats.source import Source, Split
from multas_ray.run_folder import read_metrics
from multas_ray.teacher.precompute import precompute
from multas_ray.train.run import train

SIZE = 128
VAL = 64
"""Number of validation images."""
CAMERA, CAMERA_SIDES = 48, (4000, 3000)
"""Number of images as large as a camera's, and their width and height in pixels."""
TEACHER_STEPS, STUDENT_STEPS = 400, 200
WARMUP, STEPS = 10, 30
"""Steps of the warm-up of each placement, and steps that are measured."""
TIMES = ("step", "teacher_wait", "data_wait")
"""Times that a run logs, as they stand in `Cost`."""
MIXING = {"det": 8, "seg": 8}
"""Rows of each task mask in a student's batch."""


@dataclass(frozen=True)
class Cost:
    """Medians over a training's steps."""

    placement: str
    replicas: int | None
    """Number of replicas of each teacher in a pool; None for the other placements."""
    images_per_s: float
    step_s: float
    teacher_wait_s: float
    data_wait_s: float


def prepare_images(path: Path, shared: Path) -> str:
    """Write the benchmark's data set, unless it is there: half of the training images with boxes only, half with masks.

    Args:
        path: folder of the data set.
        shared: folder of the real images, the animals of VOC 2012; without them, scenes are generated.

    Returns:
        Description of the images.
    """
    root = shared / "data" / "voc2012-animals" / "VOC2012"
    real = root.exists()
    if not (path / "dataset.json").exists():
        source = _some_animals(root) if real else _some_scenes()
        write_dataset(path, replace(source, name="benchmark"), command="python jobs/benchmark.py teachers")
    return "real images (VOC 2012's animals, 20 classes)" if real else f"generated scenes ({root} is missing)"


def prepare_camera_images(path: Path, images: Path) -> None:
    """Write a data set of CAMERA images as large as a camera's, unless it is there: images of another one, enlarged.

    Args:
        path: folder of the data set.
        images: folder of the other one, by `prepare_images`.
    """
    if (path / "dataset.json").exists():
        return
    source = holdout.read(holdout.Options(data=str(images), fraction=0))
    train = source.splits["train"]
    step = len(train.items) // CAMERA
    split = Split(train.items[::step][:CAMERA], partial(_enlarged, train.read))
    write_dataset(path, replace(source, splits={"train": split}), command="python jobs/benchmark.py data")


def _enlarged(read: Callable[[Any], Row | Reject | None], item: Any) -> Row | Reject | None:
    """Read a row, and enlarge it to CAMERA_SIDES, with the noise of a sensor."""
    row = read(item)
    if not isinstance(row, Row):
        return row
    width, height = CAMERA_SIDES
    pixels = Image.fromarray(decode_rgb(row.image, upright=True).permute(1, 2, 0).numpy())
    large = np.asarray(pixels.resize(CAMERA_SIDES, Image.Resampling.BICUBIC)).astype(np.int16)
    large += np.random.default_rng(0).normal(0, 4, large.shape).astype(np.int16)
    image = encode(Image.fromarray(large.clip(0, 255).astype(np.uint8)), "JPEG", 92)
    scale = np.array([width / pixels.width, height / pixels.height] * 2, np.float32)
    mask = None
    if row.mask is not None:
        mask = np.asarray(Image.fromarray(row.mask).resize(CAMERA_SIDES, Image.Resampling.NEAREST))
    return replace(row, image=image, height=height, width=width, boxes=row.boxes * scale, mask=mask)


def _some_animals(root: Path) -> Source:
    """Read all training images of the animals, and VAL validation images."""
    source = voc.read(voc.Options(root=root, det="MXEdet/train", seg="MXEseg/train", val="Main/val"))
    val = source.splits["val"]
    return replace(source, splits={**source.splits, "val": Split(val.items[:VAL], val.read)})


def _some_scenes() -> Source:
    """Generate about as many training scenes, and VAL validation scenes."""
    return scenes.read(scenes.Options(train=1600, val=VAL, size=SIZE, partial={"det": 0.5, "seg": 0.5}))


def configure(out: Path, name: str, overrides: Sequence[str], **sections: dict[str, Any]) -> Config:
    """Configure one of the benchmark's runs, in the folder `out/name`.

    Args:
        out: folder of the data set and of the runs.
        name: name of the run.
        overrides: configuration values of the command line by dotted path, which take precedence.
        sections: values that differ from the benchmark's defaults, by section.
    """
    tree: dict[str, dict[str, Any]] = {
        "data": {"path": str(out / "data"), "size": SIZE},
        "model": {"backbone": "efficientnet_lite0", "width": 96, "anchor_base": 16},
        "optim": {"lr": 0.0005, "weight_decay": 0.05, "ema_decay": 0.99, "ema_warmup": 100},
        "train": {"run": str(out / name), "batch_size": 16, "log_every_steps": 1},
        "evaluate": {"pictures": 0},
        "tracking": {"wandb": "disabled"},
    }
    for section, values in sections.items():
        tree[section] = tree.get(section, {}) | values
    return parse_config(tree, overrides)


def train_networks(out: Path, overrides: Sequence[str]) -> None:
    """Train the two teachers side by side, then a multi-task student for some steps; finished runs are not run again.

    Args:
        out: folder of the data set and of the runs.
        overrides: configuration values of the command line by dotted path.
    """
    teachers = [
        configure(out, task, overrides, model={"tasks": [task]}, train={"steps": TEACHER_STEPS})
        for task in ("det", "seg")
    ]
    with ThreadPoolExecutor(len(teachers)) as threads:
        list(threads.map(train, teachers))
    train(configure(out, "student", overrides, data={"mixing": MIXING}, train={"steps": STUDENT_STEPS}))


def measure_placement(out: Path, overrides: Sequence[str], placement: str, replicas: int = 1) -> Cost:
    """Train for WARMUP + STEPS steps with the teachers of `train_networks`.

    Args:
        out: folder of the data set and of the runs.
        overrides: configuration values of the command line by dotted path.
        placement: pure (no teachers), inline, pool, stored, or original: stored for original images.
        replicas: number of replicas of each teacher in a pool.
    """
    teachers: dict[str, Any] = {task: {"source": str(out / task)} for task in ("det", "seg")}
    stored = {"stored": str(out / "store"), "original": str(out / "originals")}
    teachers |= {"placement": "stored" if placement in stored else placement, "store": stored.get(placement)}
    teachers["replicas"] = replicas
    config = configure(
        out,
        f"{placement}{replicas}",
        overrides,
        data={"mixing": MIXING},
        teachers={} if placement == "pure" else teachers,
        train={"steps": WARMUP + STEPS},
    )
    # A finished run is not run again.
    shutil.rmtree(config.train.run, ignore_errors=True)
    if placement in stored:
        precompute(config, "original" if placement == "original" else 1)
    train(config)
    lines = [line for line in read_metrics(Path(config.train.run)) if "time/step_s" in line][WARMUP:]
    step, teacher, data = (median(line[f"time/{name}_s"] for line in lines) for name in TIMES)
    rate = config.train.batch_size / step
    return Cost(placement, replicas if placement == "pool" else None, rate, step, teacher, data)
