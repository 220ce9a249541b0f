"""Jobs on a Ray cluster of several raylets on this machine."""

import os
import subprocess
import sys

from ray.cluster_utils import Cluster

from tests.support.processes import PATIENCE
from tests.support.shared import ROOT


def job(cluster: Cluster, *arguments: str) -> subprocess.Popen:
    """A job's process, whose output is read by `end_of`."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": cluster.address, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_of(process: subprocess.Popen) -> str:
    """A job's output, when it has ended well."""
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output
