"""Teachers in a cluster: pools that several jobs share, and the death of the node that holds them."""

import time
from pathlib import Path

import psutil
import pytest

from multas_ray.run_folder import read_metrics
from tests.support.cluster import end_of, job
from tests.support.runs import wait_for_step

TEACHERS = {"teacher_node": 1}


@pytest.mark.slow
def test_jobs_share_a_named_pool(cluster, make_config, random_teachers, tmp_path):
    config = make_config(teachers={**random_teachers, "pool": "scenes", "resources": {"cpu": 0.1}})
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert "no shared pool" in end_of(job(cluster, "jobs/teachers.py", "status"))
    runs = [job(cluster, "jobs/train.py", "--config", str(file), f"train.run={tmp_path / name}") for name in "ab"]
    for run in runs:
        end_of(run)
    # The jobs have ended; what they started together has not, and has answered both: 6 steps of 8 rows each, of which
    # a half lacks boxes and a half lacks masks.
    rows = [
        line.split() for line in end_of(job(cluster, "jobs/teachers.py", "status")).splitlines() if "scenes" in line
    ]
    assert [(row[3], row[5], row[7], row[9]) for row in rows] == [
        ("det", "0", "ALIVE", "0"),
        ("seg", "0", "ALIVE", "0"),
    ]
    assert sum(int(row[13]) for row in rows) > 2 * 30
    started = end_of(job(cluster, "jobs/teachers.py", "start", "--config", str(file), "teachers.replicas=2"))
    assert started.count("ALIVE") == 4
    assert "4 replicas ended" in end_of(job(cluster, "jobs/teachers.py", "stop", "scenes"))


@pytest.mark.slow
def test_a_run_survives_the_death_of_the_teachers_node(cluster, make_config, random_teachers, tmp_path):
    node = cluster.add_node(num_cpus=2, resources=TEACHERS)
    resources = {"cpu": 0.1, "custom": {"teacher_node": 0.1}}
    config = make_config(
        train={"run": str(tmp_path / "kd"), "steps": 60, "batch_size": 8, "log_every_steps": 1, "max_failures": 0},
        teachers={**random_teachers, "replicas": 2, "resources": resources},
    )
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    run = job(cluster, "jobs/train.py", "--config", str(file))
    wait_for_step(config.train.run, 12)
    teachers = [p for p in psutil.process_iter(["cmdline"]) if "ray::TeacherActor" in " ".join(p.info["cmdline"] or [])]
    cluster.remove_node(node, allow_graceful=False)
    stopped = read_metrics(Path(config.train.run))[-1]["step"]
    time.sleep(5)
    cluster.add_node(num_cpus=2, resources=TEACHERS)
    end_of(run)
    assert len(teachers) >= 4
    assert stopped < 60
    # Every step's targets carry the digests of its own images, or the run had stopped: max_failures is 0.
    lines = [line for line in read_metrics(Path(config.train.run)) if "loss/total" in line]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert all(line["loss/kd_seg"] > 0 for line in lines)
    assert max(line.get("teacher/det/restarts", 0) for line in lines) >= 1, "its teachers had died"
