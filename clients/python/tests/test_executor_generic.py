"""What CPython's own tests ask of every executor (test_concurrent_futures: executor, wait, as_completed).

They are asked here of treadle.Executor on real workers. Distributions leave CPython's tests out, and
theirs wait by the clock; these wait for locks on files.
"""

from __future__ import annotations

import concurrent.futures as futures
import fcntl
import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle
from test_binary import BINARY, Up, local, until

pytestmark = [
    pytest.mark.binary,
    pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built (go build -o bin/treadle ./cmd/treadle)"),
]


def ended(result: Any = None, error: BaseException | None = None) -> futures.Future[Any]:
    """A future of somebody else's."""
    future: futures.Future[Any] = futures.Future()
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
    return future


def cancelled(notified: bool = True) -> futures.Future[Any]:
    future: futures.Future[Any] = futures.Future()
    future.cancel()
    if notified:
        future.set_running_or_notify_cancel()
    return future


DONE, RAISED, CANCELLED, UNTOLD = ended(42), ended(error=OSError()), cancelled(), cancelled(notified=False)


@local
def mul(x: int, y: int) -> int:
    return x * y


@local
def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@local
def gate(path: str, error: str = "") -> str:
    """Return, or raise, when the gate is opened; an empty path is open."""
    import fcntl

    if path:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    if error:
        raise OSError(error)
    return path


class Gate:
    """A file that is locked until the gate is opened: the system wakes whoever waits for it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        self._file.close()


@pytest.fixture
def shut(tmp_path: Path) -> Iterator[Gate]:
    """A gate. It is open when the test is over, so it stands behind what waits for tasks."""
    closed = Gate(tmp_path / "gate")
    yield closed
    closed.open()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    server = Up(tmp_path_factory.mktemp("generic"))
    server.start()
    yield server
    server.end()


@pytest.fixture
def pool(up: Up) -> Iterator[treadle.Executor]:
    with treadle.Client(up.address) as client, treadle.Executor(5, client=client) as executor:
        yield executor


def test_submit_keywords(pool: treadle.Executor) -> None:
    submit: Any = pool.submit
    assert submit(pow, 2, 8).result(60) == 256
    assert submit(mul, 2, y=8).result(60) == 16
    assert submit(capture, 1, self=2, fn=3).result(60) == ((1,), {"self": 2, "fn": 3})
    for wrong in ({"fn": capture, "arg": 1}, {"arg": 1}):
        with pytest.raises(TypeError):
            submit(**wrong)


def test_map(pool: treadle.Executor) -> None:
    wanted = list(map(pow, range(10), range(10)))
    assert list(pool.map(pow, range(10), range(10))) == wanted
    assert list(pool.map(pow, range(10), range(10), chunksize=3)) == wanted


def test_map_raises_in_its_place(pool: treadle.Executor) -> None:
    results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_timeout(pool: treadle.Executor, shut: Gate) -> None:
    found = []
    with pytest.raises(futures.TimeoutError):
        for value in pool.map(gate, ["", "", shut.path], timeout=5):
            found.append(value)
    assert found in (["", ""], [""], []), "two of them at most"


def test_shutdown_while_a_map_is_under_way(pool: treadle.Executor) -> None:
    results = pool.map(str, [2] * 6)
    pool.shutdown()
    assert list(results) == ["2"] * 6


def test_no_stale_references(pool: treadle.Executor) -> None:
    class Own:
        def method(self) -> None:
            pass

    Own.__module__ = "__main__"
    thing, gone = Own(), threading.Event()
    watched = weakref.ref(thing, lambda _: gone.set())
    pool.submit(thing.method)  # nobody keeps the future
    del thing
    assert gone.wait(60) and watched() is None


def test_map_keeps_no_results(pool: treadle.Executor) -> None:
    for value in pool.map(set, [[n] for n in range(10)]):
        kept = weakref.ref(value)
        del value
        # The thread that delivered it may still leave its frame.
        until(lambda kept=kept: gc.collect() >= 0 and kept() is None)


def test_max_workers(up: Up) -> None:
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            treadle.Executor(max_workers=number)


# futures.wait


def test_wait_for_a_future_twice(pool: treadle.Executor) -> None:
    future = pool.submit(mul, 21, 2)
    done, pending = futures.wait([future, future], timeout=60)
    assert done == {future} and not pending


def test_first_completed(pool: treadle.Executor, shut: Gate) -> None:
    first, second = pool.submit(mul, 21, 2), pool.submit(gate, shut.path)
    done, pending = futures.wait([UNTOLD, first, second], 60, futures.FIRST_COMPLETED)
    assert done == {first} and pending == {UNTOLD, second}
    done, pending = futures.wait([CANCELLED, DONE, second], 60, futures.FIRST_COMPLETED)
    assert done == {CANCELLED, DONE} and pending == {second}


def test_first_exception(pool: treadle.Executor, shut: Gate, tmp_path: Path) -> None:
    raises, goes_on = Gate(tmp_path / "raises"), pool.submit(gate, shut.path)
    first, second = pool.submit(mul, 2, 21), pool.submit(gate, raises.path, "told to")
    assert first.result(60) == 42
    raises.open()
    done, pending = futures.wait([first, second, goes_on], 60, futures.FIRST_EXCEPTION)
    assert done == {first, second} and pending == {goes_on}
    done, pending = futures.wait([RAISED, goes_on], 60, futures.FIRST_EXCEPTION)
    assert done == {RAISED} and pending == {goes_on}
    failed = pool.submit(divmod, 21, 0)
    done, pending = futures.wait([DONE, UNTOLD, CANCELLED, failed, goes_on], 60, futures.FIRST_EXCEPTION)
    assert done == {DONE, CANCELLED, failed} and pending == {UNTOLD, goes_on}


def test_all_completed(pool: treadle.Executor, shut: Gate) -> None:
    first, second = pool.submit(divmod, 2, 0), pool.submit(mul, 2, 21)
    everything = {DONE, CANCELLED, RAISED, first, second}
    done, pending = futures.wait(everything, 60)
    assert done == everything and not pending
    goes_on = pool.submit(gate, shut.path)
    done, pending = futures.wait([CANCELLED, RAISED, DONE, goes_on], 0.05)
    assert done == {CANCELLED, RAISED, DONE} and pending == {goes_on}


def test_wait_for_many_while_they_end(pool: treadle.Executor, shut: Gate) -> None:
    all_of_them = {pool.submit(gate, shut.path) for _ in range(100)}
    shut.open()
    done, pending = futures.wait(all_of_them, 60)
    assert done == all_of_them and not pending


# futures.as_completed


def test_as_completed(pool: treadle.Executor) -> None:
    everything = {CANCELLED, RAISED, DONE, pool.submit(mul, 2, 21), pool.submit(mul, 7, 6)}
    assert set(futures.as_completed(everything, 60)) == everything


def test_as_completed_times_out(pool: treadle.Executor, shut: Gate) -> None:
    goes_on = pool.submit(gate, shut.path)
    for timeout in (0, 0.1):
        found = set()
        with pytest.raises(futures.TimeoutError, match=r"1 \(of 4\) futures unfinished"):
            for future in futures.as_completed({CANCELLED, RAISED, DONE, goes_on}, timeout):
                found.add(future)
        assert found == {CANCELLED, RAISED, DONE}


def test_as_completed_gives_each_once(pool: treadle.Executor) -> None:
    future = pool.submit(mul, 2, 21)
    assert list(futures.as_completed(itertools.repeat(future, 3), 60)) == [future]


def test_the_end_of_with_waits(up: Up, shut: Gate) -> None:
    with treadle.Client(up.address) as client:
        with treadle.Executor(5, client=client) as pool:
            future = pool.submit(gate, shut.path)
            opener = threading.Timer(0.2, shut.open)
            opener.start()
        assert future.done(), "only an open gate ends it"
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(mul, 1, 1)
        opener.join()
