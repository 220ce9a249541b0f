import json
import os
import time

from multas_ray.storage import StoragePath
from multas_ray.train.console import _state


def write(file, text: str, age: float) -> None:
    file.write_text(text)
    os.utime(file, (time.time() - age,) * 2)


def test_progress_tells_the_newest_step_losses_and_scores(tmp_path):
    assert _state(StoragePath(tmp_path)) == (0, "")
    lines = [
        {"step": 10, "loss/total": 2.0, "throughput/images_per_s": 30.0},
        {"step": 10, "det/AP50": 41.0, "score": 41.0},
        {"step": 20, "loss/total": 1.5, "throughput/images_per_s": 31.0},
    ]
    write(tmp_path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines), age=10)
    assert _state(StoragePath(tmp_path)) == (20, "loss 1.500  31.0 img/s  det/AP50 41.0")


def test_a_restart_is_told_until_the_run_goes_on(tmp_path):
    write(tmp_path / "errors.log", "2026-01-01 10:00:00 rank 1: OSError: disk full\nTraceback …\n", age=5)
    assert _state(StoragePath(tmp_path)) == (0, "after an error: 2026-01-01 10:00:00 rank 1: OSError: disk full")
    line = json.dumps({"step": 3, "loss/total": 1.0, "throughput/images_per_s": 9.0})
    write(tmp_path / "metrics.jsonl", line + "\n", age=1)
    assert _state(StoragePath(tmp_path)) == (3, "loss 1.000  9.0 img/s")
