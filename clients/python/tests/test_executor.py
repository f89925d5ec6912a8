"""treadle.Executor is a concurrent.futures.Executor; the ideas are those of CPython's own tests."""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle
from fake_fabric import FakeFabric
from test_binary import BINARY, Up
from treadle.testing import LocalClient

needs_binary = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built (go build -o bin/treadle)")


@pytest.fixture
def pool(client: treadle.Client) -> Iterator[treadle.Executor]:
    with treadle.Executor(5, client=client) as executor:
        yield executor


def test_submit(pool: treadle.Executor) -> None:
    assert isinstance(pool, concurrent.futures.Executor)
    future = pool.submit(pow, 2, 8)
    assert isinstance(future, treadle.TaskFuture) and future.result() == 256
    assert pool.submit(dict, self=1, fn=2).result() == {"self": 1, "fn": 2}
    with pytest.raises(treadle.InvalidRequest):
        pool.submit(2)  # type: ignore[call-overload]


def test_map(pool: treadle.Executor) -> None:
    assert list(pool.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    for chunksize in (1, 2, 3, 100):
        assert list(pool.map(operator.neg, range(10), chunksize=chunksize)) == [-n for n in range(10)]
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(operator.neg, [1], chunksize=-1)
    with pytest.raises(ZeroDivisionError):
        list(pool.map(divmod, [1, 1], [1, 0]))


def test_map_submits_at_once_or_as_far_as_it_is_told(pool: treadle.Executor) -> None:
    seen: list[int] = []

    def items() -> Iterator[int]:
        for n in range(20):
            seen.append(n)
            yield n

    results = pool.map(operator.neg, items())
    assert len(seen) == 20
    assert list(results) == [-n for n in range(20)]
    seen.clear()
    results = pool.map(operator.neg, items(), buffersize=3)
    assert len(seen) == 3
    assert next(results) == 0 and len(seen) == 4
    with pytest.raises(ValueError, match="buffersize"):
        pool.map(operator.neg, [1], buffersize=0)


def test_map_timeout(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    with treadle.Executor(client=client) as pool:
        with pytest.raises(concurrent.futures.TimeoutError):
            list(pool.map(operator.neg, [1, 2], timeout=0.05))
    assert sorted(fabric.cancelled) == sorted(fabric.requests), "nobody waits for them any more"


def test_arguments() -> None:
    client = LocalClient()
    for bad in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            treadle.Executor(bad, client=client)
    with pytest.raises(ValueError, match="initializer"):
        treadle.Executor(client=client, initializer=print)
    with treadle.Executor(client=client) as pool:
        assert pool.submit(operator.neg, 1).result() == -1


def test_no_more_than_max_workers_are_under_way(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    with treadle.Executor(3, client=client) as pool:
        futures = [pool.submit(operator.neg, n) for n in range(10)]
        assert [futures[n].task_id for n in range(3)] == list(fabric.requests)
        assert futures[9].cancel() and futures[9].cancelled()
        for n in range(9):
            fabric.finish(futures[n].task_id, -n)
            futures[n].result(10)
            wanted = min(9, n + 4)
            fabric.wait_for(lambda wanted=wanted: len(fabric.requests) == wanted)
    assert fabric.cancelled == []


def test_shutdown(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    pool = treadle.Executor(2, client=client)
    futures = [pool.submit(operator.neg, n) for n in range(3)]
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(operator.neg, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.map(operator.neg, [1])
    for n, future in enumerate(futures):
        fabric.finish(future.task_id, -n)
    assert [future.result(10) for future in futures] == [0, -1, -2]
    pool.shutdown()
    assert client.submit(operator.neg, 1).task_id, "the client is the caller's"


@pytest.mark.parametrize("how", ["result", "cancel"])
def test_shutdown_waits_for_callbacks(fabric: FakeFabric, client: treadle.Client, how: str) -> None:
    fabric.auto = False
    pool = treadle.Executor(2, client=client)
    future = pool.submit(operator.neg, 1)
    entered, leave = threading.Event(), threading.Event()
    seen: list[str] = []

    def callback(_: Any) -> None:
        entered.set()
        assert leave.wait(20)
        seen.append("called")

    future.add_done_callback(callback)
    threads = [threading.Thread(target=lambda: (pool.shutdown(), seen.append("shut")))]
    if how == "result":
        fabric.finish(future.task_id, -1)
    else:
        threads.append(threading.Thread(target=future.cancel))
        threads[1].start()
    assert entered.wait(20)
    threads[0].start()
    threads[0].join(0.2)
    leave.set()
    for thread in threads:
        thread.join(20)
    assert seen == ["called", "shut"]


def test_shutdown_in_a_callback(pool: treadle.Executor) -> None:
    done = threading.Event()
    future = pool.submit(operator.neg, 1)
    future.add_done_callback(lambda _: (pool.shutdown(), done.set()))
    assert done.wait(20)


def test_shutdown_ends_a_client_of_its_own(fabric: FakeFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_ADDRESS", fabric.address)
    with treadle.Executor() as pool:
        future = pool.submit(operator.neg, 1)
    assert future.result(0) == -1
    with pytest.raises(treadle.ClientClosed):
        pool._client.info()
    fabric.auto = False
    pool = treadle.Executor()
    future = pool.submit(operator.neg, 1)
    pool.shutdown(wait=False)
    fabric.finish(future.task_id, -1)
    assert future.result(10) == -1


def test_cancel_futures_spares_what_runs(fabric: FakeFabric, client: treadle.Client) -> None:
    from treadle._gen.treadle.v1 import fabric_pb2 as pb

    fabric.auto = False
    pool = treadle.Executor(4, client=client)
    futures = [pool.submit(operator.neg, n) for n in range(10)]
    ids = [futures[n].task_id for n in range(4)]
    with fabric.changed:
        for n in (0, 2):
            fabric.results[ids[n]].status = pb.Task.RUNNING
    pool.shutdown(wait=False, cancel_futures=True)
    fabric.wait_for(lambda: len(fabric.cancelled) == 2)
    fabric.finish(ids[0], 0)
    fabric.finish(ids[2], -2)
    pool.shutdown(wait=True)
    assert [future.cancelled() for future in futures] == [n not in (0, 2) for n in range(10)]
    assert [futures[0].result(), futures[2].result()] == [0, -2]
    assert len(fabric.requests) == 4


def test_references(pool: treadle.Executor) -> None:
    future = pool.submit(Thing)
    kept, value = weakref.ref(future), weakref.ref(future.result())
    del future
    for _ in range(200):
        if kept() is None and value() is None:
            break
        time.sleep(0.01)  # the client's threads leave their frames
    assert kept() is None and value() is None


class Thing:
    pass


def test_asyncio_takes_it(pool: treadle.Executor) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, operator.neg, n) for n in range(5)))

    assert asyncio.run(main()) == [0, -1, -2, -3, -4]


def test_many_threads(pool: treadle.Executor) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda n: pool.submit(operator.neg, n).result(20), range(200))
        assert list(found) == [-n for n in range(200)]


def test_submit_in_a_callback(pool: treadle.Executor) -> None:
    seen: list[int] = []
    done = threading.Event()

    def again(future: Any) -> None:
        seen.append(future.result())
        if len(seen) == 20:
            done.set()
        else:
            pool.submit(operator.add, seen[-1], 1).add_done_callback(again)

    pool.submit(operator.add, 0, 1).add_done_callback(again)
    assert done.wait(20) and seen == list(range(1, 21))


PROGRAM = """
import atexit, sys
import treadle

def work(n):
    return n + 1

def late():
    try:
        pool.submit(work, 1)
    except RuntimeError as exc:
        print("late:", exc)

atexit.register(late)
pool = treadle.Executor(3)
for n in range(20):
    pool.submit(work, n).add_done_callback(lambda future: sys.stdout.write(f"result {future.result()}\\n"))
"""


@pytest.mark.binary
@needs_binary
def test_the_end_of_a_program_waits(tmp_path: Path) -> None:
    up = Up(tmp_path)
    up.start()
    try:
        env = {**os.environ, "TREADLE_ADDRESS": up.address}
        env["PYTHONPATH"] = str(Path(treadle.__file__).parent.parent)
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert sorted(int(line.split()[1]) for line in lines[:-1]) == list(range(1, 21)), done.stdout + done.stderr
        assert lines[-1] == "late: cannot schedule new futures after interpreter shutdown"
        assert done.stderr == ""
        with treadle.Client(up.address) as client, treadle.Executor(client=client) as pool:
            assert list(pool.map(lambda n: n * n, range(50), chunksize=7)) == [n * n for n in range(50)]
    finally:
        up.end()
