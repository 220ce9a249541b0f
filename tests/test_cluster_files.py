"""The files in cluster/ against the schemas and programs that will read them."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from multas_ray.config import Config
from multas_ray.config_file import load_config
from multas_ray.placement import Node, asks, unplaced
from tests.support.configs import changed
from tests.support.processes import PATIENCE
from tests.support.shared import ROOT, shared_path

CLUSTER = ROOT / "cluster"
KUBERAY = {"RayCluster": CLUSTER / "kuberay/raycluster.yaml", "RayJob": CLUSTER / "kuberay/rayjob.yaml"}
CLOUDS = [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"]
PROGRAMS = Path(sys.executable).parent


def read(file: Path) -> dict[str, Any]:
    return yaml.load(file.read_text(), yaml.CSafeLoader)


def closed(schema: Any) -> Any:
    """A schema that refuses the fields it does not name, as `kubectl apply` does."""
    if not isinstance(schema, dict):
        return schema
    inner: dict[str, Any] = {key: closed(schema[key]) for key in ("items", "additionalProperties") if key in schema}
    if "properties" in schema:
        inner["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            inner.setdefault("additionalProperties", False)
    return schema | inner


@pytest.mark.parametrize("kind", KUBERAY)
def test_manifests_follow_kuberays_definitions(kind):
    definition = read(shared_path("kuberay-crds", f"ray.io_{kind.lower()}s.yaml"))
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1"]
    manifest = read(KUBERAY[kind])
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    checker = jsonschema.Draft202012Validator(closed(schema))
    checker.validate(manifest)
    manifest["spec"]["entrypiont"] = "a slip of the pen"
    with pytest.raises(jsonschema.ValidationError, match="entrypiont"):
        checker.validate(manifest)


def test_a_jobs_own_cluster_is_the_cluster_that_stays():
    assert read(KUBERAY["RayJob"])["spec"]["rayClusterSpec"] == read(KUBERAY["RayCluster"])["spec"]


def test_kubernetes_has_the_groups_the_storage_and_the_key_of_wandb():
    spec = read(KUBERAY["RayCluster"])["spec"]
    assert spec["enableInTreeAutoscaling"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups.keys() == {"student", "teacher", "data"}
    assert [name for name, group in groups.items() if "teacher_node" in group.get("resources", {})] == ["teacher"]
    claim = read(CLUSTER / "kuberay" / "storage.yaml")
    for group in (spec["headGroupSpec"], *groups.values()):
        pod = group["template"]["spec"]
        claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert claims == [{"claimName": claim["metadata"]["name"]}]
    keys = [variable for variable in pod_variables(groups["student"]) if variable["name"] == "WANDB_API_KEY"]
    assert [variable["valueFrom"]["secretKeyRef"]["name"] for variable in keys] == ["wandb"]


def pod_variables(group: dict[str, Any]) -> list[dict[str, Any]]:
    return [variable for container in group["template"]["spec"]["containers"] for variable in container.get("env", [])]


@pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.stem)
def test_ray_up_takes_the_clouds_files(file):
    config = prepare_config(read(file))
    validate_config(config)
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert config["provider"]["use_internal_ips"]


def test_kuberays_clusters_want_a_token_and_have_no_public_service():
    spec = read(KUBERAY["RayCluster"])["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert all(pod["template"]["spec"]["securityContext"]["runAsNonRoot"] for pod in pods)


def test_every_dashboard_that_is_started_listens_on_localhost():
    """On Kubernetes the operator starts it, behind a service of the cluster (above)."""
    text = {file: file.read_text().replace("\\\n", " ") for file in [*CLOUDS, CLUSTER / "slurm.sh"]}
    heads = [
        line for file in text for line in re.findall(r"ray start .*(?:\n {4,}--.*)*", text[file]) if "--head" in line
    ]
    assert len(heads) == 3
    assert [re.findall(r"--dashboard-host=(\S+)", head) for head in heads] == [["127.0.0.1"]] * 3


def nodes(file: Path) -> list[Node]:
    """What a cluster's file has at most, the head left out."""
    config = read(file)
    if config.get("kind") != "RayCluster":
        types = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
        return [Node(kind["resources"], kind["labels"]) for kind in types for _ in range(kind["max_workers"])]
    found = []
    for group in config["spec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        total = {"CPU": limits["cpu"], "GPU": limits.get("nvidia.com/gpu", 0)} | group.get("resources", {})
        node = Node({key: float(value) for key, value in total.items()}, group["labels"])
        found += [node] * group["maxReplicas"]
    return found


def submitted(command: str) -> Config:
    """The configuration that a command line with jobs/train.py makes."""
    words = shlex.split(command)
    words = words[words.index("jobs/train.py") + 1 :]
    assert words[0] == "--config"
    return load_config(str(ROOT / words[1]), words[2:])


@pytest.mark.parametrize("file", [KUBERAY["RayCluster"], *CLOUDS], ids=lambda file: file.stem)
def test_the_training_that_is_shown_finds_room_on_each_cluster(file):
    config = submitted(read(KUBERAY["RayJob"])["spec"]["entrypoint"])
    config = changed(config, **{"train.workers": 2})
    assert unplaced(asks(config), nodes(file)) is None
    for part in ("train", "teachers", "data"):
        config = changed(config, **{f"{part}.resources.labels": {"role": "nobody"}})
    assert unplaced(asks(config), nodes(file)) is not None


def test_the_trainings_in_the_guide_are_configurations():
    text = (CLUSTER / "README.md").read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("    ") and "jobs/train.py" in line]
    assert len(commands) >= 2
    for command in commands:
        assert submitted(command).train.resources.gpu


def test_the_image_is_built_as_hadolint_advises():
    subprocess.run([PROGRAMS / "hadolint", CLUSTER / "Dockerfile"], check=True)
    text = (CLUSTER / "Dockerfile").read_text()
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
    assert "-c constraints.txt" in text
    assert re.search(r'^ARG COMMIT=\nRUN echo "\${COMMIT}" > COMMIT$', text, re.MULTILINE), "which runs record"


def test_the_image_is_sent_what_it_copies_and_nothing_else():
    copied = re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert {name for names in copied for name in names.split() if name != "."} <= kept
    assert "*" in lines
    assert {"data", "runs", ".git", "tests"}.isdisjoint(kept)


def test_the_slurm_script_is_clean():
    subprocess.run([PROGRAMS / "shellcheck", CLUSTER / "slurm.sh"], check=True)


SRUN = """#!/bin/bash
# srun as far as slurm.sh needs it: every node is this machine.
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
tr , '\\n' <<< "$3"
"""


@pytest.fixture
def slurm(tmp_path, scenes_path) -> Iterator[dict[str, str]]:
    """The environment of a Slurm job of two nodes, which are both this machine."""
    programs, home, submitted_from = (tmp_path / name for name in ("bin", "home", "submitted"))
    for folder in (programs, home, submitted_from):
        folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (submitted_from / ".venv").symlink_to(sys.prefix)
    (submitted_from / "jobs").symlink_to(ROOT / "jobs")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MULTAS_LOCAL"))}
    number = str(os.getpid())
    yield own | {
        **{"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home), "SLURM_SUBMIT_DIR": str(submitted_from)},
        **{"SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "one,two", "SLURM_CPUS_PER_TASK": "4"},
    }
    # As Slurm does, when the script has ended.
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == number:
                process.kill()


@pytest.mark.slow
def test_the_slurm_script_trains_on_its_nodes(slurm, make_config, random_teachers, tmp_path):
    """The script itself, with a srun that starts everything here: a student on the first node, teachers on the last."""
    file, log = tmp_path / "config.yaml", tmp_path / "log"
    file.write_text(make_config(teachers=random_teachers).to_yaml())
    overrides = ["train.resources={cpu: 1, labels: {role: student}}"]
    overrides += ["teachers.resources={cpu: 0.5, custom: {teacher_node: 0.5}}"]
    with log.open("w") as output:
        done = subprocess.run(
            ["bash", CLUSTER / "slurm.sh", *overrides],
            env=slurm | {"CONFIG": str(file)},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, log.read_text()
    assert json.loads((tmp_path / "run/result.json").read_text())["steps"] == 6
    assert not list(Path(slurm["HOME"]).glob(".ray-token-*")), "the job's token is gone"
