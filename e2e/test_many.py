"""What one Redis with many processes on it promises: a server, two dispatchers, workers."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

import grpc
import pytest
import requests
from conftest import Own, show_on_failure
from harness.fabric import QUICK, Layout, Mode, Node, Split
from harness.functions import starts, wait_starts
from harness.load import Load
from harness.process import BINARY, Process, environment
from harness.redis import Redis, free_port
from harness.reflection import Generic
from harness.wait import until
from importable_zoo import double, note_and_wait

pytestmark = pytest.mark.layouts("split")

# How long a role tries to reach a store that does not answer when it starts.
PATIENCE = 30
AWAY = ["server", "dispatcher", "up"]


@pytest.fixture(scope="module", autouse=True)
def without_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """Roles whose store does not answer, started before the other tests of this file as they take their time."""
    folder = tmp_path_factory.mktemp("away")
    store = ["--store", f"redis://127.0.0.1:{free_port()}", "--grpc-addr", "127.0.0.1:0"]
    roles = {name: Process(name, [name, *store, "--data-dir", str(folder / name)], folder) for name in AWAY[:2]}
    roles["up"] = Process("up", ["up", *store, "--http-addr", "127.0.0.1:0", "--data-dir", str(folder / "up")], folder)
    try:
        yield roles
    finally:
        for process in roles.values():
            process.stop()


@pytest.fixture(scope="module", params=["push", "pull"])
def many_fabric(
    request: pytest.FixtureRequest, new_store: Callable[[Layout], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Split]:
    """Two dispatchers, each with one worker of two slots that knows both, with the settings of who sets none."""
    mode: Mode = request.param
    fabric = Split(tmp_path_factory.mktemp(f"many-{mode}"), store=new_store("split"), mode=mode)
    try:
        for _ in range(2):
            fabric.worker(mode, slots=2)
        yield fabric
    finally:
        fabric.close()


@pytest.fixture
def many(request: pytest.FixtureRequest, many_fabric: Split) -> Split:
    show_on_failure(request, many_fabric)
    return many_fabric


class Held:
    """A task on every worker of a fabric that runs until it is let go."""

    def __init__(self, fabric: Split, folder: Path) -> None:
        self._fabric = fabric
        self._gate = folder / "gate"
        # Two of four slots; they may share a worker.
        self._notes = [folder / f"held-{n}" for n in range(2)]
        self._tasks = [fabric.v1.submit(note_and_wait, str(p), str(self._gate), p.name) for p in self._notes]
        for path in self._notes:
            wait_starts(path, 1)

    def check(self) -> None:
        """Lets them go: each was executed once."""
        self._gate.touch()
        for path, task_id in zip(self._notes, self._tasks):
            assert self._fabric.v1.value(task_id) == path.name
            assert_once(self._fabric, task_id)
            assert len(starts(path)) == 1


def assert_once(fabric: Split, task_id: str) -> None:
    record = fabric.v1.task(task_id)
    assert (record["attempt_count"], record["lost_workers"]) == (1, 0), record


def assert_load_ran_once(fabric: Split, load: Load) -> None:
    executions = load.check()
    assert set(executions.values()) == {1}, {n: e for n, e in executions.items() if e != 1}
    for task_id in load.acknowledged.values():
        assert_once(fabric, task_id)


def term(process: Process) -> None:
    process.signal(signal.SIGTERM)
    assert process.exit_code() == 0, process.log()


def test_rolling_restart_under_load_runs_nothing_again(many: Split, tmp_path: Path) -> None:
    """Every dispatcher and the server end in turn and come back: running tasks stay with their workers."""
    held = Held(many, tmp_path)
    load = Load(many.v1, tmp_path / "load")
    try:
        load.go_on(10)
        for node in many.dispatchers:
            term(node.process)
            # The other one serves all workers meanwhile.
            load.go_on(20)
            node.restart()
            load.go_on(10)
        term(many.up)
        many.restart()
        load.go_on(10)
    finally:
        load.stop()
    assert load.repeated > 0, "no client noticed that the server was away"
    held.check()
    assert_load_ran_once(many, load)


def test_killed_dispatcher_is_replaced_by_the_other_within_two_seconds(many: Split, tmp_path: Path) -> None:
    """SIGKILL of each in turn, under load: what its worker held goes on, and all slots are served."""
    for n, node in enumerate(many.dispatchers):
        folder = tmp_path / str(n)
        folder.mkdir()
        held = Held(many, folder)
        load = Load(many.v1, folder / "load")
        try:
            load.go_on(10)
            killed = time.monotonic()
            node.process.kill()
            # They need the two slots that are left, wherever those are.
            gate, notes = folder / "others", [folder / f"other-{i}" for i in range(2)]
            others = [many.v1.submit(note_and_wait, str(p), str(gate), 7, options={"priority": 9}) for p in notes]
            took = [wait_starts(p, 1)[0].at - killed for p in notes]
            gate.touch()
            assert [many.v1.value(task_id) for task_id in others] == [7, 7]
            load.go_on(10)
        finally:
            load.stop()
        assert max(took) <= 2, f"from the SIGKILL to the starts of two more tasks: {took}"
        held.check()
        assert_load_ran_once(many, load)
        node.restart()
    assert all(many.worker_record(worker) for worker in many.workers)


@pytest.fixture
def redis_alone(tmp_path: Path) -> Iterator[Redis]:
    """A Redis that a test may kill and spoil."""
    server = Redis(tmp_path / "redis")
    yield server
    server.close()


def unavailable(url: str) -> str:
    """Waits for the answer that clients are promised while the store cannot be used, and returns its text."""

    def text() -> Optional[str]:
        resp = requests.get(url, timeout=20)
        return resp.text if resp.status_code == 503 else None

    return until(text, f"503 from {url}")


def test_killed_redis_comes_back_with_everything(own: Own, redis_alone: Redis, tmp_path: Path) -> None:
    """Clients are told to try again, nothing acknowledged is lost, and what workers run is not run again."""
    fabric = own.split(redis_alone.url())
    for mode in ("push", "pull"):
        fabric.worker(mode, slots=2)
    held = Held(fabric, tmp_path)
    load = Load(fabric.v1, tmp_path / "load")
    client = Generic(fabric.grpc_addr)
    try:
        load.go_on(20)
        task_id = next(iter(load.acknowledged.values()))
        redis_alone.kill()
        for path in (f"status/{task_id}", f"v1/tasks/{task_id}", "readyz"):
            assert "Redis does not answer" in unavailable(fabric.root.base + path)
        with pytest.raises(grpc.RpcError) as failed:
            client.call("treadle.v1.FabricService/GetTask", {"task_id": task_id})
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE, failed.value
        before = load.repeated
        until(lambda: load.repeated > before, "a submission that was not acknowledged")
        redis_alone.restart()
        load.go_on(20)
    finally:
        client.close()
        if not redis_alone.process.running:
            redis_alone.restart()
        load.stop()
    held.check()
    executions = load.check()
    assert set(executions.values()) == {1}, {n: e for n, e in executions.items() if e != 1}
    assert all(p.running for p in fabric.processes)


def refused(store: str, folder: Path, role: str) -> str:
    """What a role says that must not start on a store."""
    args = [role, "--store", store, "--data-dir", str(folder), "--grpc-addr", "127.0.0.1:0"]
    ended = subprocess.run(
        [str(BINARY), *args], capture_output=True, text=True, timeout=20, env=environment(folder), check=False
    )
    assert ended.returncode == 1, ended
    return ended.stderr


def test_redis_that_may_drop_tasks_is_refused(redis_alone: Redis, tmp_path: Path) -> None:
    redis_alone.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    for role in ("server", "dispatcher"):
        said = refused(redis_alone.url(), tmp_path, role)
        assert "maxmemory-policy is allkeys-lru" in said and "noeviction" in said, said
    redis_alone.command("CONFIG", "SET", "maxmemory-policy", "noeviction")

    server = Node("server", ["server", "--store", redis_alone.url()], tmp_path / "server")
    server.ready()
    try:
        url = f"http://{server.http_addr}/v1/tasks"
        assert requests.get(url, timeout=20).status_code == 200
        # A server that runs looks at the settings again and again.
        redis_alone.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        said = unavailable(url)
        assert "maxmemory-policy is allkeys-lru" in said and "noeviction" in said, said
        redis_alone.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        until(lambda: requests.get(url, timeout=20).status_code == 200, "the server to serve again")
    finally:
        server.process.stop()


@pytest.mark.parametrize("how", ["flushed", "replaced"])
def test_redis_that_is_empty_all_at_once_is_refused(own: Own, redis_alone: Redis, how: str) -> None:
    """Nobody takes an empty store for one in which all tasks have ended."""
    fabric = own.split(redis_alone.url(), *QUICK)
    worker = fabric.worker("push")
    task_id = fabric.v1.submit(double, 4)
    assert fabric.v1.value(task_id) == 8
    if how == "flushed":
        redis_alone.command("FLUSHALL")
    else:
        redis_alone.kill()
        redis_alone.forget()
        redis_alone.restart()
    for path in (f"result/{task_id}", f"v1/tasks/{task_id}", "v1/tasks"):
        said = unavailable(fabric.root.base + path)
        assert "the store identity changed" in said and "flushed or replaced" in said, said
    resp = fabric.v1.request("POST", "/v1/functions", {"name": "f", "source": "def f(): pass"})
    assert resp.status_code == 503 and "the store identity changed" in resp.text, resp.text
    until(lambda: "the store identity changed" in fabric.dispatchers[0].process.log(), "a dispatcher to say so")
    # Who starts anew takes the store as it is.
    for node in fabric.dispatchers:
        node.process.kill()
        node.restart()
    fabric.up.kill()
    fabric.restart()
    assert fabric.v1.get("/v1/tasks")["tasks"] == []
    until(lambda: fabric.worker_record(worker), "the worker to attach again")
    assert fabric.v1.call(fabric.v1.post("/v1/functions", {"name": "f", "source": "def f(): return 1"})["function_id"])


def test_store_that_answers_late(redis_alone: Redis, tmp_path: Path) -> None:
    """Processes may start before their Redis does."""
    redis_alone.kill()
    server = Node("server", ["server", "--store", redis_alone.url()], tmp_path / "server")
    try:
        until(lambda: "the store is not ready; trying again" in server.process.log(), "the server to say so")
        assert server.process.running
        redis_alone.restart()
        server.ready()
        assert requests.get(f"http://{server.http_addr}/readyz", timeout=20).status_code == 200
    finally:
        server.process.stop()


@pytest.mark.parametrize("role", AWAY)
def test_store_that_never_answers(without_store: dict[str, Process], role: str) -> None:
    """Tried for half a minute, with one line in the log; then the process ends, as nothing good would come of it."""
    process = without_store[role]
    assert process.exit_code(timeout=PATIENCE + 10) == 1
    assert PATIENCE - 1 <= process.lasted() <= PATIENCE + 10
    log = process.log()
    assert log.count("the store is not ready; trying again") == 1, log
    assert "was not ready within" in log, log
    assert process.output() == ""
