"""Workers spread over the dispatchers of one store and follow them; pools grow and shrink with the work."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest
from conftest import Own
from harness.fabric import PYTHON, Mode
from harness.functions import starts, wait_starts
from harness.process import Process
from harness.v1 import V1
from harness.wait import until
from importable_zoo import note_and_wait


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def connected_to(process: Process, ports: list[int]) -> Optional[int]:
    """Which of these ports of this machine the process is connected to, if it is to exactly one."""
    inodes = set()
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        established = "01"
        if fields[3] == established and fields[9] in inodes:
            found.add(int(fields[2].split(":")[1], 16))
    here = found & set(ports)
    return here.pop() if len(here) == 1 else None


class Deployment:
    """A Redis, a server, and dispatchers and workers that tests start and stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self._redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.store = f"redis://127.0.0.1:{port}"
        self.ports = [free_port(), free_port()]
        try:
            server = self.start("server", "server", "--store", self.store, "--grpc-addr", "127.0.0.1:0")
            self.v1 = V1(f"http://{server.ready()['http_addr']}")
        except BaseException:
            self.close()
            raise

    def start(self, name: str, *args: str) -> Process:
        flags = [*args, "--json", "--data-dir", str(self.folder / "data")]
        if args[0] != "dispatcher":
            flags += ["--http-addr", "127.0.0.1:0"]
        process = Process(name, flags, self.folder)
        self.processes.append(process)
        return process

    def dispatcher(self, n: int) -> Process:
        address = f"127.0.0.1:{self.ports[n]}"
        process = self.start(f"dispatcher-{n}", "dispatcher", "--store", self.store, "--grpc-addr", address)
        process.ready()
        return process

    def worker(self, n: int, mode: str) -> Process:
        listed = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        flags = ["worker", "--mode", mode, "--dispatcher", listed, "--slots", "1", *PYTHON]
        return self.start(f"worker-{n}", *flags)

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.log()[-3000:]}" for p in self.processes)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.stop()
        self._redis.kill()
        self._redis.wait()
        shutil.rmtree(self.folder / "data", ignore_errors=True)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    try:
        yield made
    finally:
        # It is shown when the test fails.
        print(made.logs())
        made.close()


def test_workers_follow_dispatchers(deployment: Deployment, tmp_path: Path) -> None:
    """A dispatcher joins, one leaves, it comes back: workers move each time and re-run nothing."""
    first = deployment.dispatcher(0)
    workers = [deployment.worker(n, mode) for n, mode in enumerate(["push", "pull", "push", "pull"])]
    gate = tmp_path / "gate"
    notes = [tmp_path / f"notes-{n}" for n in range(len(workers))]
    tasks = [deployment.v1.submit(note_and_wait, str(path), str(gate), path.name) for path in notes]
    for path in notes:
        wait_starts(path, 1)

    def spread(*counts: int) -> bool:
        here = [connected_to(w, deployment.ports) for w in workers]
        return tuple(here.count(port) for port in deployment.ports) == counts

    assert spread(4, 0)
    deployment.dispatcher(1)
    until(lambda: spread(2, 2), "two workers at each dispatcher", timeout=60)
    first.signal(signal.SIGTERM)
    assert first.exit_code() == 0, first.log()
    until(lambda: spread(0, 4), "all workers at the dispatcher that is left")
    deployment.dispatcher(0)
    until(lambda: spread(2, 2), "two workers at each dispatcher again", timeout=60)

    gate.touch()
    for path, task_id in zip(notes, tasks):
        assert deployment.v1.value(task_id) == path.name
        record = deployment.v1.task(task_id)
        assert [a["end"] for a in record["attempts"]] == ["succeeded"], record
        assert record["lost_workers"] == 0, record
        assert len(starts(path)) == 1, "a task ran twice"


def test_pool_follows_the_work(own: Own, mode: Mode, tmp_path: Path) -> None:
    """--slots MIN-MAX: runners are started while work waits, and end when they are idle."""
    elastic = ["--slots", "1-3", "--idle-after", "1s"]
    fabric = own.up(*elastic) if mode == "local" else own.up()
    if mode != "local":
        fabric.worker(mode, *elastic, wait=False)

    def slots() -> int:
        return sum(w["slots"] for w in fabric.v1.get("/v1/workers")["workers"])

    until(lambda: slots() == 1, "the pool to be there with one slot")
    gate = tmp_path / "gate"
    notes = [tmp_path / f"notes-{n}" for n in range(5)]
    tasks = [fabric.v1.submit(note_and_wait, str(path), str(gate), path.name) for path in notes]
    until(lambda: sum(map(len, map(starts, notes))) == 3, "three tasks to run side by side")
    until(lambda: slots() == 3, "three slots among the workers")
    gate.touch()
    for path, task_id in zip(notes, tasks):
        assert fabric.v1.value(task_id) == path.name
        assert len(starts(path)) == 1
        record = fabric.v1.task(task_id)
        assert [a["end"] for a in record["attempts"]] == ["succeeded"], record
    until(lambda: slots() == 1, "the pool to shrink")
    assert fabric.v1.call(note_and_wait, str(tmp_path / "after"), str(gate), 1)["result"] == 1
