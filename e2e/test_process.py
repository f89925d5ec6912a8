"""Starting and stopping: the ready line, ports, the data folder, signals, exit codes."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Own
from harness.fabric import PYTHON, Mode
from harness.functions import wait_starts
from harness.process import BINARY, environment
from harness.wait import until
from importable_zoo import double, nap, note, note_and_wait

ANY = "127.0.0.1:0"


def run(*args: str, folder: Path, timeout: float = 30) -> "subprocess.CompletedProcess[str]":
    """Runs the binary to its end."""
    return subprocess.run(
        [str(BINARY), *args], capture_output=True, text=True, timeout=timeout, env=environment(folder), check=False
    )


def up(folder: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    """Runs an `up` that must not stay."""
    return run("up", "--slots", "0", "--data-dir", str(folder), *args, folder=folder)


def test_ready_line(own: Own) -> None:
    """One line of JSON, and everything answers from then on."""
    fabric = own.up()
    lines = fabric.up.output().splitlines()
    assert len(lines) == 1
    ready = json.loads(lines[0])
    assert set(ready) == {"grpc_addr", "http_addr", "pid"}
    assert ready["pid"] == fabric.up.pid
    for route in ("", "healthz", "readyz"):
        assert requests.get(fabric.root.base + route, timeout=10).status_code == 200
    host, _, port = ready["grpc_addr"].rpartition(":")
    socket.create_connection((host, int(port)), timeout=5).close()


def test_answers_without_workers(own: Own) -> None:
    """Submissions are accepted before there is anyone to run them."""
    fabric = own.up()
    task_id = fabric.root.run(double, 4)
    assert fabric.root.status(task_id) == "QUEUED"
    fabric.worker("push")
    assert fabric.root.value(task_id) == 8


@pytest.mark.parametrize("flag", ["--grpc-addr", "--http-addr"])
def test_taken_port(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addr = f"127.0.0.1:{taken.getsockname()[1]}"
        other = "--http-addr" if flag == "--grpc-addr" else "--grpc-addr"
        ended = up(tmp_path, flag, addr, other, ANY)
    assert ended.returncode == 1, ended
    assert flag in ended.stderr and addr in ended.stderr, ended.stderr
    assert ended.stdout == ""


def test_data_folder_has_one_owner(own: Own) -> None:
    fabric = own.up()
    ended = up(fabric.data, "--grpc-addr", ANY, "--http-addr", ANY)
    assert ended.returncode == 1, ended
    assert str(fabric.data) in ended.stderr, ended.stderr
    assert fabric.up.running
    assert fabric.v1.get("/v1/tasks")["tasks"] == []
    fabric.up.kill()
    fabric.restart()


def test_many_workers_share_a_data_folder(own: Own, mode: Mode) -> None:
    if mode == "local":
        pytest.skip("a pool has its data folder for itself")
    fabric = own.up()
    for _ in range(3):
        fabric.worker(mode)
    assert len(os.listdir(fabric.data / "workers")) == 3


@pytest.mark.parametrize(
    "args",
    [
        ["up", "--slots", "-1"],
        ["up", "--slots", "many"],
        ["up", "--no-such-flag"],
        ["up", "extra"],
        ["up", "--lease", "1s", "--heartbeat", "1s"],
        ["up", "--rest-compat", "other"],
        ["up", "--grpc-addr", "0.0.0.0:0"],
        ["worker", "--mode", "local"],
        ["worker", "--dispatcher", "http://nowhere"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_misuse(tmp_path: Path, args: list[str]) -> None:
    ended = run(*args, folder=tmp_path)
    assert ended.returncode == 2, ended
    assert ended.stderr.strip()
    assert "Traceback" not in ended.stderr and "goroutine" not in ended.stderr
    assert not list(tmp_path.iterdir()), "misuse left something behind"


def test_first_ctrl_c_drains_second_quits(own: Own, mode: Mode, tmp_path: Path) -> None:
    """The second one does not wait; nor do runners die of the first, which a terminal sends to all."""
    fabric = own.start(mode, slots=2)
    process = fabric.workers[-1] if fabric.workers else fabric.up
    gate = tmp_path / "gate"
    ended = fabric.v1.submit(note_and_wait, str(tmp_path / "ended"), str(gate), 1)
    stays = fabric.v1.submit(note, str(tmp_path / "stays"), 60)
    for name in ("ended", "stays"):
        wait_starts(tmp_path / name, 1)
    os.killpg(process.pid, signal.SIGINT)
    until(lambda: fabric.worker_record(process) is None, "the pool to be seen draining")
    gate.touch()
    assert fabric.v1.value(ended) == 1
    assert fabric.v1.task(stays)["status"] == "RUNNING"
    assert process.running
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.exit_code() == 130
    assert time.monotonic() - started < 3


def test_worker_waits_for_its_dispatcher(own: Own, mode: Mode) -> None:
    """It may start first; it keeps dialing, and a dispatcher that comes later has it."""
    if mode == "local":
        pytest.skip("a pool has its dispatcher beside it")
    fabric = own.up()
    fabric.up.kill()
    worker = fabric.worker(mode, wait=False)
    until(lambda: "dispatcher" in worker.log(), "the worker to say what it does")
    fabric.restart()
    assert fabric.v1.value(fabric.v1.submit(double, 5)) == 10
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0


def test_idle_worker_without_dispatcher_ends_at_once(own: Own) -> None:
    fabric = own.up()
    worker = fabric.worker("push")
    fabric.up.kill()
    worker.signal(signal.SIGTERM)
    assert worker.exit_code(timeout=10) == 0


def test_sigterm_while_starting(own: Own, mode: Mode) -> None:
    """There is nothing to drain: exit 0 at once, and nobody is blamed."""
    fabric = own.up(slots=1) if mode == "local" else own.up()
    if mode == "local":
        fabric.up.kill()
        process = fabric.again()
        process.ready()
    else:
        process = fabric.worker(mode, wait=False)
        until(lambda: "worker starts" in process.log(), "the worker to say that it starts")
    process.signal(signal.SIGTERM)
    assert process.exit_code() == 0, process.log()
    assert "interpreter" not in process.log()


def test_functions_of_the_working_directory(own: Own, mode: Mode, tmp_path: Path) -> None:
    """A by-reference pickle needs its module at the runner only: in the working directory is enough."""
    package = tmp_path / "project" / "suite"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "functions.py").write_text("def halve(x):\n    return x / 2\n")
    import base64

    payload = base64.encodebytes(b"\x80\x04\x8c\x0fsuite.functions\x8c\x05halve\x93.").decode()
    cwd = package.parent
    fabric = own.up(slots=1, cwd=cwd) if mode == "local" else own.up()
    if mode != "local":
        fabric.worker(mode, cwd=cwd)
    resp = fabric.root.post("register_function", {"name": "halve", "payload": payload})
    assert resp.status_code == 200, resp.text
    assert fabric.root.value(fabric.root.execute(resp.json()["function_id"], 5)) == 2.5


def test_settings_from_the_environment(tmp_path: Path) -> None:
    """Each flag has a twin; a flag wins."""
    env = {**environment(tmp_path), "TREADLE_SLOTS": "-7", "TREADLE_DATA_DIR": str(tmp_path)}
    ended = subprocess.run([str(BINARY), "up"], capture_output=True, text=True, timeout=30, env=env, check=False)
    assert ended.returncode == 2
    assert "-7" in ended.stderr


def test_secrets_of_the_environment_stay(own: Own, monkeypatch: Any) -> None:
    """Runners see the environment, less what is Treadle's."""
    source = "def names():\n    import os\n    return sorted(k for k in os.environ if k.startswith('TREADLE'))"
    fabric = own.up(slots=1)
    function = fabric.v1.post("/v1/functions", {"name": "names", "source": source})["function_id"]
    assert fabric.v1.call(function)["result"] == []


def test_memory_store(own: Own) -> None:
    fabric = own.up("--store", "memory:", slots=1)
    assert fabric.v1.get("/v1/info")["durability"] == "memory"
    assert fabric.v1.value(fabric.v1.submit(nap, 0)) == 0
    assert not (fabric.data / "store").exists()


def test_python_that_is_not_there(tmp_path: Path) -> None:
    """Said at the start, not by the first task."""
    args = ["--data-dir", str(tmp_path), "--grpc-addr", ANY, "--http-addr", ANY, "--python", "/nowhere/python"]
    ended = run("up", "--slots", "1", *args, folder=tmp_path)
    assert ended.returncode != 0
    assert "/nowhere/python" in ended.stderr
    assert PYTHON[1] not in ended.stderr
