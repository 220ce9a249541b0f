"""Who can talk to the Ray that a job has started on this machine.

Ray binds its gRPC servers (GCS, raylet, workers, agents) and its metrics to every address, and `ray.init` has no
setting against it: what protects them is the token. The dashboard, which starts jobs and shows logs, is bound to
localhost.
"""

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
import ray

from tests.support.processes import PATIENCE


def test_the_dashboard_listens_on_localhost_only_and_wants_a_token(started_ray):
    address, port = ray._private.worker.global_worker.node.webui_url.split(":")
    assert address == "127.0.0.1"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=60)
    assert refused.value.code == 401
    addresses = [
        found.address for own in psutil.net_if_addrs().values() for found in own if found.family == socket.AF_INET
    ]
    for other in {*addresses, "127.0.0.2"} - {"127.0.0.1"}:
        with pytest.raises(ConnectionRefusedError), socket.create_connection((other, int(port)), timeout=60):
            pass


def test_nobody_joins_without_the_token(started_ray):
    join = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r})"
    for mode, joins in (("disabled", False), ("token", True)):
        own = os.environ | {"RAY_AUTH_MODE": mode}
        joined = subprocess.run([sys.executable, "-c", join], env=own, capture_output=True, text=True, timeout=PATIENCE)
        assert (joined.returncode == 0) == joins, joined.stderr
        assert joins or "token" in joined.stderr
