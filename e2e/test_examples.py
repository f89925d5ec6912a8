"""The programs in examples/, run as their comments say, against a real server."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from conftest import Own
from harness.fabric import CLIENT, Fabric
from harness.process import ROOT, Process
from harness.wait import until

EXAMPLES = ROOT / "examples"
UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def run(fabric: Fabric, *command: str, cwd: Path = ROOT, env: Optional[dict[str, str]] = None) -> str:
    """What a program prints that ends well within a minute."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={
            **os.environ,
            "TREADLE_ADDRESS": fabric.grpc_addr,
            "TREADLE_URL": f"http://{fabric.http_addr}",
            **(env or {}),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(fabric: Fabric, name: str) -> str:
    return run(fabric, sys.executable, str(EXAMPLES / name), env={"PYTHONPATH": str(CLIENT)})


def test_first(own: Own) -> None:
    assert re.fullmatch(f"task {UUID}\nresult 42\n", python(own.up(slots=1), "first.py"))


def test_sweep(own: Own) -> None:
    # Of the rates at which the map settles the largest one has the largest fixed point, 1 - 1/2.5.
    assert python(own.up(slots=4), "sweep.py") == "20 points, best rate 2.5: 0.600000\n"


def test_curl(own: Own) -> None:
    fabric = own.up(slots=1)
    lines = run(fabric, "bash", str(EXAMPLES / "curl.sh")).splitlines()
    assert len(lines) == 4, lines
    assert re.fullmatch(f"function {UUID}", lines[0])
    task = re.fullmatch(f"task ({UUID})", lines[1])
    assert task, lines
    assert f'"task_id":"{task[1]}"' in lines[2]
    assert '"result":42' in lines[2]
    assert '"result":8' in lines[3]


def test_go_service(own: Own, tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs Go")
    subprocess.run([go, "build", "-o", str(tmp_path), "./examples/goservice/..."], cwd=ROOT, check=True, timeout=600)
    fabric = own.up()
    worker = Process("goservice", ["-dispatcher", fabric.grpc_addr], tmp_path / "logs", program=tmp_path / "worker")
    fabric.workers.append(worker)
    until(lambda: fabric.worker_record(worker), "the Go worker among the workers")
    client = str(tmp_path / "client")
    assert run(fabric, client, "Ada") == "Hello, Ada! (attempt 1)\n"
    assert run(fabric, client) == "the function failed: the visitor has no name\n"
    task = fabric.v1.get("/v1/tasks?page_size=1&filter=status%20%3D%20COMPLETED")["tasks"][0]["task_id"]
    assert fabric.v1.get(f"/v1/tasks/{task}/logs")["text"] == f"task {task}\n"


def test_node(own: Own, tmp_path: Path) -> None:
    node, npm, client = shutil.which("node"), shutil.which("npm"), ROOT / "clients" / "typescript"
    if node is None or npm is None or not (client / "node_modules").is_dir():
        pytest.skip("needs Node and the packages of the TypeScript client: tools/install.sh typescript")
    subprocess.run([npm, "run", "build"], cwd=client, check=True, timeout=300, capture_output=True)
    # What `npm install` makes of the dependency: a link to the client's folder.
    shutil.copytree(EXAMPLES / "node", tmp_path / "node", ignore=shutil.ignore_patterns("node_modules"))
    scope = tmp_path / "node" / "node_modules" / "@treadle"
    scope.mkdir(parents=True)
    (scope / "client").symlink_to(client)
    assert run(own.up(slots=2), node, "first.js", cwd=tmp_path / "node") == "call 144\nsum 30\ncollected 25 36\n"
