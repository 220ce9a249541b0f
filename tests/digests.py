"""Digests of what short trainings compute: proof that a change of the code's form changes no number.

python -m tests.digests before.json --checkout ../before
python -m tests.digests after.json --against before.json

It prepares scenes, trains two teachers and students with every loss, every placement of the teachers, both presets, one
worker and two, 30 steps each, then scores and predicts, all through the jobs' command lines, so that it runs on any
commit. Two files of one machine agree to the last bit, or the differences are printed and the exit code is 1.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("time/", "throughput/", "teacher/")
"""Prefixes of metrics that are measurements, other in each run."""
STEPS = 30
EVERY_DETECTION_LOSS = {"on": "all", "soft_cls": 0.001, "soft_box": 1, "mse": 1, "pdf": 1, "defeat": 1}
EVERY_LOSS = {
    "loss": {"weak_det": 0.5, "weak_seg": 0.5},
    "distill": {"det": EVERY_DETECTION_LOSS, "seg": {"on": "all", "temperature": 2, "cwd": 1}},
}
TEACHERS = {"det": {"checkpoint": "runs/det"}, "seg": {"checkpoint": "runs/seg"}}
PAPER = {
    "model": {"preset": "paper", "backbone": "resnet18", "neck": "pafpn", "width": 32, "norm": "group"},
    "loss": {"matching": "mutual_guidance", "classification": "generalized_focal"},
}
RUNS: dict[str, dict[str, Any]] = {
    "det": {"model": {"tasks": ["det"]}},
    "seg": {"model": {"tasks": ["seg"]}},
    "inline": EVERY_LOSS | {"teachers": TEACHERS | {"placement": "inline"}},
    "paper": PAPER
    | {
        "teachers": TEACHERS,
        "distill": {"targets": "packed"},
        "train": {"workers": 2},
        "data": {"mixing": {"det": 4, "seg": 4}},
    },
    "two_workers": EVERY_LOSS | {"teachers": TEACHERS | {"placement": "inline"}, "train": {"workers": 2}},
    "stored": {"teachers": TEACHERS | {"placement": "stored", "store": "store"}},
    "ema": {
        "teachers": {"placement": "ema"},
        "distill": {"start": 0.3},
        "data": {"size": [64, 96], "multi_scale_until": 0.7},
        "optim": {"name": "sgd", "lr": 0.01},
    },
    "bfloat16": {"teachers": TEACHERS, "train": {"precision": "bfloat16"}},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file of the digests, by what they are of")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the code to run (default: this one)")
    parser.add_argument("--against", type=Path, help="digests to compare with")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="digests") as folder:
        found = collect(Path(folder), args.checkout.resolve())
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.against is None:
        return 0
    before = json.loads(args.against.read_text())
    changed = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    for name in changed:
        print(f"differs: {name}")
    print(f"{len(found)} digests, {len(changed)} differ")
    return bool(changed)


def collect(folder: Path, checkout: Path) -> dict[str, str]:
    """Run all, and return the digests by name."""

    def job(name: str, *arguments: str) -> None:
        print(f"{name} {' '.join(arguments)}", flush=True)
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(checkout / "jobs" / f"{name}.py"), *arguments]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

    found: dict[str, str] = {}
    job("prepare", "scenes", "--train=160", "--val=24", "--size=96", "--partial=det=0.4,seg=0.4", "--out=data")
    found |= digests_of(folder, "data/**/*.parquet")
    for name, changes in RUNS.items():
        config = folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(configuration(name, changes)))
        if name == "stored":
            job("precompute", f"--config={config}", "--views=2")
            found |= digests_of(folder, "store/**/*.parquet")
        job("train", f"--config={config}")
        run = folder / "runs" / name
        found |= digests_of(folder, f"runs/{name}/checkpoints/*/model.safetensors")
        found |= digests_of(folder, f"runs/{name}/samples/*.png")
        for line in (run / "metrics.jsonl").read_text().splitlines():
            metrics = {key: value for key, value in json.loads(line).items() if not key.startswith(MEASURED)}
            kind = "scores" if "score" in metrics else "losses"
            found[f"runs/{name}: {kind} of step {metrics['step']}"] = json.dumps(metrics, sort_keys=True)
    student = "--checkpoint=runs/inline"
    job("evaluate", student, "--data=data", "--out=scored")
    result = json.loads((folder / "scored" / "result.json").read_text())
    found["evaluate"] = json.dumps(result["metrics"], sort_keys=True)
    found |= digests_of(folder, "scored/worst.png")
    job("predict", student, "--images=data", "--out=predicted")
    return found | digests_of(folder, "predicted/**/*.*")


def configuration(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration: a tiny network, 30 steps."""
    tree: dict[str, Any] = {
        "data": {"path": "data", "size": 96, "workers": 1},
        "model": {"backbone": "efficientnet_lite0", "pretrained": False, "width": 32},
        "optim": {"warmup_steps": 5, "ema_warmup": 10},
        "train": {"run": f"runs/{name}", "steps": STEPS, "batch_size": 8, "precision": "float32", "log_every_steps": 1},
        "evaluate": {"every_steps": STEPS // 2},
        "tracking": {"wandb": "disabled"},
    }
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    return tree


def digests_of(folder: Path, pattern: str) -> dict[str, str]:
    """SHA-256 of files below a folder, by their relative paths."""
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    assert files, f"{pattern}: no such file was written"
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":
    sys.exit(main())
