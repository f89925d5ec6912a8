"""Functions that go: by DELETE, by the command line, and by themselves when nobody uses them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.process import BINARY, Process, environment
from harness.v1 import V1, Json
from harness.wait import until

SOURCE = "def double(x):\n    return 2 * x\n"


@pytest.fixture(params=["embedded", "redis"])
def up(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    flags = ["--data-dir", str(tmp_path / "data"), "--slots", "1", "--json", "--retention", "2s"]
    if request.param == "redis":
        flags += ["--store", request.getfixturevalue("redis").url()]
    process = Process("up", ["up", *flags, "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"], tmp_path)
    yield process
    process.stop()


def register(v1: V1, **fields: object) -> Json:
    return v1.post("/v1/functions", {"name": "double", "source": SOURCE, **fields})


def test_deleted_functions(up: Process, tmp_path: Path) -> None:
    v1 = V1(f"http://{up.ready()['http_addr']}")
    first, second, third = (register(v1)["function_id"] for _ in range(3))
    waiting = v1.post("/v1/functions", {"name": "waiting", "source": SOURCE, "queue": "nobody"})["function_id"]
    task = v1.post("/v1/tasks", {"function": waiting, "args": [1]})["task_id"]
    refused = v1.request("DELETE", f"/v1/functions/{waiting}")
    assert refused.status_code == 409, refused.text
    error = refused.json()["error"]
    assert error["reason"] == "FUNCTION_IN_USE" and "an unfinished task" in error["message"], error

    assert v1.post(f"/v1/functions/{third}:call", {"args": [21]})["result"] == 42
    done = v1.request("DELETE", f"/v1/functions/{third}")
    assert (done.status_code, done.json()) == (200, {})
    assert v1.request("POST", f"/v1/functions/{third}:call", {"args": [21]}).status_code == 404
    assert v1.get("/v1/functions/double")["function_id"] == second
    assert v1.post("/v1/functions/double:call", {"args": [4]})["result"] == 8, "the bytes that it shared are there"

    address = str(up.ready()["grpc_addr"])
    args = [str(BINARY), "functions", "rm", first, second, third, "--address", address]
    removed = subprocess.run(args, capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert (removed.returncode, removed.stdout.split()) == (5, [first, second]), removed
    assert third in removed.stderr
    assert v1.request("GET", "/v1/functions/double").status_code == 404
    v1.post(f"/v1/tasks/{task}:cancel")
    assert v1.request("DELETE", f"/v1/functions/{waiting}").status_code == 200
    assert v1.get("/v1/functions")["functions"] == []


def test_transient_functions(up: Process) -> None:
    v1 = V1(f"http://{up.ready()['http_addr']}")
    stays, transient = register(v1), register(v1, transient=True)
    assert transient["transient"] and not stays.get("transient")
    assert register(v1, transient=True)["function_id"] == transient["function_id"]
    assert register(v1, transient=True, queue="gpu")["function_id"] != transient["function_id"]
    assert v1.post(f"/v1/functions/{transient['function_id']}:call", {"args": [21]})["result"] == 42

    def left() -> list[str]:
        return [f["function_id"] for f in v1.get("/v1/functions")["functions"]]

    until(lambda: left() == [stays["function_id"]], "the transient functions to go")
    again = register(v1, transient=True)["function_id"]
    assert again != transient["function_id"]
    assert v1.post(f"/v1/functions/{again}:call", {"args": [21]})["result"] == 42
