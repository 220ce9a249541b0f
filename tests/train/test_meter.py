import numpy as np
import torch

from multas_ray.report.run_report import run_report
from multas_ray.storage import StoragePath, read_lines
from multas_ray.teacher.feed import Fed
from multas_ray.train.meter import Meter, slowest
from multas_ray.train.trainer import StepOutcome
from tests.support.batches import bare_batch

BATCH = bare_batch(np.zeros((1, 3, 32, 32), np.uint8))


def outcome(loss: float, status: str = "taken") -> StepOutcome:
    return StepOutcome({"seg": torch.tensor(loss)}, status, finite=status != "bad", forward_s=0.5)


def test_steps_that_were_not_taken_are_no_part_of_the_losses():
    meter = Meter()
    for step in (outcome(2.0), outcome(float("nan"), "bad"), outcome(4.0)):
        meter.add(step, Fed(BATCH, {}, data_wait=0.1, teacher_wait=0.2))
    assert meter.losses(1, torch.device("cpu")) == {"seg": 3.0}
    assert round(meter.local_s, 6) == 0.8
    assert round(meter.times(8)["time/data_wait_s"], 6) == 0.1
    empty = Meter()
    empty.add(outcome(float("nan"), "bad"), Fed(BATCH, {}, 0.0, 0.0))
    assert empty.losses(1, torch.device("cpu")) == {}


def test_the_report_names_the_worker_that_the_others_wait_for(tmp_path):
    run = StoragePath(tmp_path)
    (run / "workers.jsonl").write_text('{"rank": 0, "node": "10.0.0.1"}\n{"rank": 1, "node": "10.0.0.2"}\n')
    lines = [slowest([0.5, 1.5, 0.5]) | {"step": step} for step in range(1, 10)] + [
        slowest([0.6, 0.5, 0.5]) | {"step": 10}
    ]
    for line in lines:
        (run / "metrics.jsonl").append_text(str(line).replace("'", '"') + "\n")
    assert len(read_lines(run / "metrics.jsonl")) == 10
    page = run_report(run).read_text()
    assert "rank 1 on 10.0.0.2</td><td>90% of the log lines</td><td>1.50</td><td>3.00" in page
    assert slowest([1.0]) == {}, "of one worker there is nothing to tell"
