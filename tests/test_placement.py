"""What a cluster can never place is refused; what it can is placed where it belongs."""

import json
import re

import pytest
import yaml

from multas_ray import placement
from multas_ray.config import Resources
from multas_ray.errors import UserError
from multas_ray.placement import Ask, Node, asks, check_placement, label_matches, unplaced
from tests.support.cluster import end_of, job
from tests.support.processes import PATIENCE
from tests.support.shared import ROOT

HEAD, GPU = Node({"CPU": 4.0}), Node({"CPU": 8.0, "GPU": 2.0}, {"role": "student"})


def ask(count: int, key: str = "train.resources", **resources) -> Ask:
    return Ask(key, count, Resources(**resources))


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [
        ([ask(2, gpu=1)], None),
        ([ask(4, gpu=0.5)], None),
        ([ask(3, gpu=1)], 0),
        ([ask(1, cpu=9)], 0),
        # Twelve CPUs in all, but no node has ten.
        ([ask(1, cpu=10)], 0),
        ([ask(12)], None),
        ([ask(13)], 0),
        # Teachers that take a GPU leave the students one too few.
        ([ask(2, gpu=1), ask(1, "teachers.resources", gpu=0.5)], 1),
        # The data tasks leave the GPU node's CPUs to the students, which must be there.
        ([ask(4, "data.resources", cpu=1), ask(2, cpu=4, gpu=1)], None),
        ([ask(8, labels={"role": "student"})], None),
        ([ask(9, labels={"role": "student"})], 0),
        ([ask(4, labels={"role": "!student"})], None),
        ([ask(1, labels={"role": "teacher"})], 0),
        ([ask(1, custom={"teacher_node": 1})], 0),
    ],
)
def test_room_is_counted_node_by_node(wanted, lacking):
    expected = None if lacking is None else wanted[lacking]
    assert unplaced(wanted, [HEAD, GPU]) == expected


@pytest.mark.parametrize(
    ("label", "condition", "fits"),
    [
        ("a", "a", True),
        ("b", "a", False),
        (None, "a", False),
        ("b", "!a", True),
        (None, "!a", True),
        ("b", "in(a, b)", True),
        ("c", "in(a,b)", False),
        ("c", "!in(a,b)", True),
    ],
)
def test_conditions_on_labels_are_rays(label, condition, fits):
    assert label_matches(label, condition) is fits


def test_an_autoscaler_may_start_what_is_not_there_yet(monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    monkeypatch.setenv("RAY_enable_autoscaler_v2", "1")
    check_placement([ask(1, gpu=1)], lambda: [HEAD])
    assert "train.resources: 1 x {CPU: 1, GPU: 1}: waits for the autoscaler" in capsys.readouterr().out
    check_placement([ask(1)], lambda: [HEAD])
    assert not capsys.readouterr().out


def test_what_the_largest_cluster_of_ray_up_has_no_room_for_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(placement, "RAY_UP", ROOT / "cluster" / "aws.yaml")
    gpus = {"cpu": 6, "gpu": 1, "labels": {"role": "student"}}
    check_placement([ask(8, **gpus)], lambda: [HEAD])
    assert "8 x {CPU: 6, GPU: 1} on nodes labelled {role: student}: waits" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"9 x .* whose autoscaler may start .*8 x {CPU: 8, GPU: 1} labelled .*student"):
        check_placement([ask(9, **gpus)], lambda: [HEAD])
    # The head counts where it has CPUs; nodes that find out their own resources may have any.
    for head, room in (({"CPU": 64}, True), ({"CPU": 63}, False), ({}, True)):
        cluster = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
        cluster["available_node_types"]["head"]["resources"] = head
        (tmp_path / "up.yaml").write_text(yaml.safe_dump(cluster))
        monkeypatch.setattr(placement, "RAY_UP", tmp_path / "up.yaml")
        if room:
            check_placement([ask(1, cpu=64)], lambda: [HEAD])
        else:
            with pytest.raises(UserError, match="whose autoscaler may start"):
                check_placement([ask(1, cpu=64)], lambda: [HEAD])


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b"\xff", b"a: [", b"available_node_types: {a: 5}\nhead_node_type: a", b"max_workers: 1000000000"],
    ids=range(6),
)
def test_where_ray_s_own_file_tells_nothing_the_most_nodes_are_not_known(monkeypatch, tmp_path, content):
    (tmp_path / "up.yaml").write_bytes(content)
    monkeypatch.setattr(placement, "RAY_UP", tmp_path / "up.yaml")
    assert placement.startable() == []


def test_what_is_large_is_placed_before_what_is_small():
    nodes = [Node({"CPU": 16.0, "GPU": 1.0}), Node({"CPU": 4.0, "GPU": 1.0})]
    assert unplaced([ask(1, cpu=2, gpu=1), ask(1, "teachers.resources", cpu=8, gpu=1)], nodes) is None


def test_nodes_that_are_joining_are_waited_for_and_the_refusal_says_what_there_is(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    # Of this clock, whose seconds pass when somebody sleeps.
    seconds: list[float] = []
    monkeypatch.setattr(placement, "monotonic", lambda: sum(seconds))
    monkeypatch.setattr(placement, "sleep", seconds.append)
    check_placement([ask(1, gpu=1)], lambda: [HEAD, GPU] if sum(seconds) >= placement.JOINING_S else [HEAD])
    assert placement.JOINING_S <= sum(seconds) <= placement.JOINING_S + 1
    seconds.clear()
    with pytest.raises(UserError) as refused:
        check_placement([ask(2, gpu=1), ask(1, "teachers.resources", gpu=1)], lambda: [HEAD, HEAD, GPU])
    assert str(refused.value) == (
        "teachers.resources: 1 x {CPU: 1, GPU: 1} beside train.resources: 2 x {CPU: 1, GPU: 1}: "
        "no room in the cluster, which has 2 x {CPU: 4}, 1 x {CPU: 8, GPU: 2} labelled {role: student}"
    )
    assert sum(seconds) >= placement.JOINING_S


def test_a_run_asks_for_its_fewest_workers_and_all_teachers(make_config, random_teachers):
    config = make_config(train={"workers": [2, 4], "batch_size": 8}, teachers={**random_teachers, "replicas": 3})
    assert [(found.key, found.count) for found in asks(config)] == [
        ("train.resources", 2),
        ("teachers.resources", 6),
        ("data.resources", 2),
    ]
    assert [found.key for found in asks(make_config())] == ["train.resources", "data.resources"]


@pytest.mark.slow
def test_each_part_runs_on_nodes_with_its_labels(cluster, make_config, random_teachers, tmp_path):
    """Students, teachers and data tasks on nodes of their own, by labels; then a GPU that no node has."""
    where = {role: cluster.add_node(num_cpus=2, labels={"role": role}) for role in ("student", "teacher", "data")}
    labelled = {role: {"cpu": 0.2, "labels": {"role": role}} for role in where}
    sections = {
        "data": {"resources": labelled["data"]},
        "train": {"run": str(tmp_path / "run"), "steps": 40, "batch_size": 8, "resources": labelled["student"]},
        "teachers": {**random_teachers, "resources": labelled["teacher"]},
    }
    file = tmp_path / "config.yaml"
    file.write_text(make_config(**sections).to_yaml())
    end_of(job(cluster, "-m", "tests.support.placed", str(file), str(tmp_path / "nodes.json")))
    names = {node.node_id: role for role, node in where.items()}
    seen = json.loads((tmp_path / "nodes.json").read_text())
    assert {kind: {names.get(node, "head") for node in nodes} for kind, nodes in seen.items()} == {
        "TeacherActor": {"teacher"},
        "ChunkMaker": {"data"},
        "RayTrainWorker": {"student"},
    }

    refused = job(
        cluster, "jobs/train.py", "--config", str(file), f"train.run={tmp_path / 'gpu'}", "train.resources.gpu=1"
    )
    output, _ = refused.communicate(timeout=PATIENCE)
    assert refused.returncode == 2
    last = output.strip().splitlines()[-1]
    assert re.fullmatch(r"error: train.resources: 1 x .*GPU: 1.*no room in the cluster, which has .*", last), output


POOL = """
import ray
from multas_ray.config import Resources, TeachersConfig
from multas_ray.ray_setup import start_ray
from multas_ray.placement import Ask, check_placement
from multas_ray.teacher.pool import start_pool
from ray.util.state import list_actors
from tests.support.teachers import Slow

resources = Resources(cpu=0.5, gpu=0.5, custom={"teacher_node": 0.5})
start_ray()
students = Ask("train.resources", 1, Resources(gpu=1))
check_placement([students, Ask("teachers.resources", 2, resources)])
pool = start_pool(TeachersConfig(resources=resources), {"det": Slow(0), "seg": Slow(0)})
print(*(actor.node_id for actor in list_actors() if "TeacherActor" in actor.class_name and actor.state == "ALIVE"))
"""


@pytest.mark.slow
def test_teachers_share_the_gpu_of_their_own_kind_of_node(cluster, make_config, tmp_path):
    """On raylets that claim GPUs: the teachers' node has another resource, too."""
    cluster.add_node(num_cpus=2, num_gpus=1)
    teachers = cluster.add_node(num_cpus=2, num_gpus=1, resources={"teacher_node": 1})
    assert end_of(job(cluster, "-c", POOL)).split()[-2:] == [teachers.node_id] * 2
    file = tmp_path / "config.yaml"
    file.write_text(make_config().to_yaml())
    refused = job(cluster, "jobs/train.py", "--config", str(file), "train.workers=3", "train.resources.gpu=1")
    output, _ = refused.communicate(timeout=PATIENCE)
    assert refused.returncode == 2
    last = output.strip().splitlines()[-1]
    assert "train.resources: 3 x {CPU: 1, GPU: 1}: no room in the cluster, which has" in last
    assert re.search(r"GPU: 1\b", last.split("which has")[1]), last
    assert "teacher_node: 1" in last
