"""Memory: what the largest values cost the process that stores them."""

import os
import sys

import pytest
from conftest import Own
from harness import procfs
from harness.fabric import Mode
from harness.root import S
from importable_zoo import echo_bytes

MIB = 1 << 20
# Eight times the largest body, and 64 MiB for everything else.
LIMIT = 780 * 10**6

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")


# For the process with the API, pull is what push is.
@pytest.mark.parametrize("mode", ["local", "push"])
@pytest.mark.parametrize("compat", ["course", "seed"])
def test_peak_of_64_mib(own: Own, mode: Mode, compat: str) -> None:
    """64 MiB in and out at the root and under /v1, several times: what one value leaves is not added to the next."""
    fabric = own.start(mode, "--rest-compat", compat, slots=1)
    root, v1 = fabric.root, fabric.v1
    function_id = root.register(echo_bytes)
    payload = S(((os.urandom(64 * MIB - 200),), {}))
    for _ in range(3):
        resp = root.post("execute_function", {"function_id": function_id, "payload": payload})
        assert resp.status_code == 200, resp.text
        task_id = resp.json()["task_id"]
        root.wait_status(task_id, "COMPLETED", timeout=90)
        assert len(root.get(f"result/{task_id}").content) > 64 * MIB
        assert len(v1.request("GET", f"/v1/tasks/{task_id}/result").content) > 64 * MIB
    peak = procfs.peak_memory(fabric.up.pid)
    assert peak <= LIMIT, f"{peak / 1e6:.0f} MB"
