"""The client against the real thing: treadle up with Python workers."""

from __future__ import annotations

import concurrent.futures
import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import treadle

BINARY = Path(os.environ.get("TREADLE_BIN") or Path(__file__).parents[3] / "bin" / "treadle")

pytestmark = [
    pytest.mark.binary,
    pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built (go build -o bin/treadle ./cmd/treadle)"),
]


class Up:
    """One `treadle up`, which keeps its port and data when it is started again."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder = folder
        self.python = python
        self.address = "127.0.0.1:0"
        self.process: Optional[subprocess.Popen[str]] = None

    def start(self) -> None:
        log = open(self.folder / "log", "a")
        command = [str(BINARY), "up", "--data-dir", str(self.folder / "data"), "--grpc-addr", self.address]
        command += ["--http-addr", "127.0.0.1:0", "--slots", "4", "--python", self.python, "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self.folder)
        log.close()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"treadle up did not start:\n{(self.folder / 'log').read_text()}"
        self.address = json.loads(line)["grpc_addr"]

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    server = Up(tmp_path_factory.mktemp("up"))
    server.start()
    yield server
    server.end()


@pytest.fixture
def client(up: Up) -> Iterator[treadle.Client]:
    with treadle.Client(up.address) as c:
        yield c
        # What a test that failed has left would keep the slots from all that follow.
        for status in ("QUEUED", "RUNNING"):
            for task in list(c.tasks(f"status = {status}")):
                c.cancel(task.task_id)


def until(what: Callable[[], bool], timeout: float = 30.0) -> None:
    """Wait for what only the server can tell."""
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def local(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function that travels by value, as those of __main__ do: workers cannot import this module."""
    import types

    made = types.FunctionType(fn.__code__, {"__builtins__": __builtins__, "__name__": "__main__"}, fn.__name__)
    made.__module__ = "__main__"
    made.__kwdefaults__ = fn.__kwdefaults__
    made.__defaults__ = fn.__defaults__
    return made


@local
def double(x: int, *, plus: int = 0) -> int:
    print("doubling", x)
    return 2 * x + plus


@local
def nap(seconds: float, value: int = 0) -> int:
    import time

    time.sleep(seconds)
    return value


@local
def raise_value_error(text: str) -> None:
    raise ValueError(text, 42)


@local
def raise_json_error() -> None:
    import json

    json.loads("{")


@local
def raise_strange_error() -> None:
    class StrangeError(Exception):
        pass

    raise StrangeError("only here")


@local
def die() -> None:
    import os

    os._exit(3)


@local
def make_generator() -> Any:
    return (n for n in range(3))


def test_the_first_minute(client: treadle.Client) -> None:
    future = client.submit(double, 21, plus=1)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(30) == 43
    assert future.status() == treadle.Status.COMPLETED
    assert future.logs() == "doubling 21\n"
    task = client.task(future.task_id)
    assert (task.function_name, task.status, task.attempt_count) == ("double", "COMPLETED", 1)
    assert task.created_at is not None and task.finished_at is not None and task.created_at <= task.finished_at
    assert client.result(future.task_id) == 43
    assert client.info().durability == "embedded"
    assert [w.slots for w in client.workers()] == [4]


def test_source(client: treadle.Client) -> None:
    function = client.register_source("triple", "def triple(x):\n    return 3 * x\n")
    assert function(14) == 42
    assert client.submit("triple", 2).result(30) == 6
    assert client.function("triple").id == function.id
    assert function.id in [f.id for f in client.functions()]


def test_values_survive(client: treadle.Client) -> None:
    echo = client.register_source("echo", "def echo(*args, **kwargs):\n    return args, kwargs\n")
    values = [None, True, 10**400, -1.5, "ä\x00\U0001f600", b"\xff\x00", [1, [2]], {"k": {1, 2}}, 1 + 2j, range(3)]
    assert echo(*values, k={"self": 1}) == (tuple(values), {"k": {"self": 1}})
    big = os.urandom(20 << 20)
    assert echo(big) == ((big,), {})


def test_a_thousand_at_once(client: treadle.Client) -> None:
    function = client.register(double)
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        futures = list(pool.map(function.submit, range(1000)))
    done, open_ = concurrent.futures.wait(futures, timeout=60)
    assert not open_
    assert [f.result(0) for f in futures] == [2 * n for n in range(1000)]
    assert len({f.task_id for f in futures}) == 1000


def test_map_keeps_order_and_bounds(client: treadle.Client) -> None:
    function = client.register(nap)
    taken = 0

    def pauses() -> Iterator[float]:
        nonlocal taken
        for n in range(40):
            taken += 1
            yield 0.03 if n % 7 == 0 else 0.0

    results = client.map(function, pauses(), range(40), buffersize=8)
    seen = []
    for value in results:
        seen.append(value)
        assert taken <= len(seen) + 8
    assert seen == list(range(40))
    assert list(client.map(double, range(1000), chunksize=100)) == [2 * n for n in range(1000)]


def test_original_exceptions(client: treadle.Client) -> None:
    with pytest.raises(ValueError) as info:
        client.submit(raise_value_error, "bad input").result(30)
    assert type(info.value) is ValueError and info.value.args == ("bad input", 42)
    assert isinstance(info.value.__cause__, treadle.RemoteTraceback)
    assert "in raise_value_error" in str(info.value.__cause__)
    with pytest.raises(json.JSONDecodeError) as json_info:
        client.submit(raise_json_error).result(30)
    assert json_info.value.pos == 1


def test_exceptions_of_unknown_classes(client: treadle.Client) -> None:
    with pytest.raises(Exception, match="only here") as info:
        client.submit(raise_strange_error).result(30)
    assert "StrangeError" in (type(info.value).__name__, getattr(info.value, "exception_type", ""))
    with treadle.Client(client.address, unpickle="safe") as careful:
        with pytest.raises(treadle.TaskFailed, match="StrangeError: only here"):
            careful.submit(raise_strange_error).result(30)
        with pytest.raises(ValueError, match="bad input"):
            careful.submit(raise_value_error, "bad input").result(30)
        assert careful.submit(double, 4).result(30) == 8


def test_failure_classes(client: treadle.Client) -> None:
    with pytest.raises(treadle.WorkerFailureError):
        client.options(max_retries=0).submit(die).result(60)
    with pytest.raises(treadle.DeadlineExceededError):
        client.submit(nap, 60, options=treadle.Options(timeout=0.2)).result(60)
    with pytest.raises(treadle.SerializationError, match="generator"):
        client.submit(make_generator).result(60)
    with pytest.raises(treadle.ResourceLimitExceeded):
        source = "def large():\n    return bytes(65 << 20)\n"
        client.register_source("large", source).submit().result(60)


def test_refusals(client: treadle.Client) -> None:
    with pytest.raises(treadle.NotFound) as info:
        client.status("01890000-0000-7000-8000-000000000000")
    assert info.value.reason == "NOT_FOUND"
    with pytest.raises(treadle.NotFound):
        client.submit("nobody registered this", 1).result(30)
    with pytest.raises(treadle.InvalidRequest, match="priority"):
        client.submit(double, 1, options=treadle.Options(priority=10)).result(30)
    with pytest.raises(treadle.TooLarge, match="67108864"):
        client.submit(double, bytes(65 << 20)).result(30)
    with pytest.raises(treadle.InvalidRequest):
        list(client.tasks("nonsense"))


def test_lists(client: treadle.Client) -> None:
    with pytest.raises(ValueError):
        client.submit(raise_value_error, "listed").result(30)
    failed = 'status = FAILED AND function = "raise_value_error"'
    (task,) = client.tasks(failed, limit=1, full=True)
    assert (task.error_type, task.exception_type) == ("FunctionExecutionFailure", "ValueError")
    assert "listed" in task.error_message and "in raise_value_error" in task.traceback
    (short,) = client.tasks(failed, limit=1)
    assert short.task_id == task.task_id and short.error_message == task.error_message and not short.traceback
    assert len(list(client.tasks(limit=3))) == 3


def test_cancel_of_a_running_task(client: treadle.Client) -> None:
    future = client.submit(nap, 600)
    until(lambda: future.status() == "RUNNING")
    assert future.cancel() and future.cancelled()
    with pytest.raises(treadle.Cancelled):
        future.result(0)
    assert future.status() == "CANCELLED"
    # Its slot is free again.
    naps = [client.submit(nap, 0, n) for n in range(8)]
    assert [f.result(30) for f in naps] == list(range(8))


def test_cancel_of_a_queued_task(client: treadle.Client) -> None:
    blockers = [client.submit(nap, 600) for _ in range(4)]
    queued = client.submit(nap, 0)
    until(lambda: all(f.status() == "RUNNING" for f in blockers))
    assert queued.status() == "QUEUED"
    assert [(q.name, q.queued, q.running) for q in client.queues()] == [("default", 1, 4)]
    assert queued.cancel()
    assert client.task(queued.task_id).attempt_count == 0
    assert client.cancel(blockers[0].task_id)
    # Cancelled by its id, the future hears of it.
    concurrent.futures.wait([blockers[0]], timeout=30)
    assert blockers[0].cancelled()
    for future in blockers[1:]:
        assert future.cancel()


def test_results_of_another_process(client: treadle.Client) -> None:
    id = client.submit(nap, 0.2, 7).task_id
    with treadle.Client(client.address) as other:
        assert other.future(id).result(30) == 7
        assert other.result(id) == 7


def test_futures_survive_a_killed_server(tmp_path: Path) -> None:
    up = Up(tmp_path)
    up.start()
    try:
        with treadle.Client(up.address) as client:
            function = client.register(nap)
            before = [function.submit(0.5, n) for n in range(12)]
            until(lambda: before[0].status() == "RUNNING")
            known = [f.task_id for f in before]
            up.kill()
            # Submitted to nobody: it waits for the server.
            during = function.submit(0, 99)
            up.start()
            assert [f.result(60) for f in before] == list(range(12))
            assert during.result(60) == 99
            assert [f.task_id for f in before] == known
            assert len(list(client.tasks())) == 13, "nothing was recorded twice"
    finally:
        up.end()


PROGRAM = """
import sys
import treadle

def half(x):
    return x // 2

client = treadle.Client(sys.argv[1])
print(client.submit(half, 84).result(30))
print([client.submit(half, n) for n in (2, 4)][1].task_id)
"""


def run(text: str, address: str) -> str:
    """What a program prints, which has to end well and say nothing else."""
    env = {**os.environ, "PYTHONPATH": str(Path(treadle.__file__).parent.parent)}
    command = [sys.executable, "-c", textwrap.dedent(text), address]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ["cloudpickle", "dill"])
def test_a_program(up: Up, package: str) -> None:
    """A program as people write it, __main__ and all, that ends without closing its client."""
    pytest.importorskip(package)
    others = {"cloudpickle": "dill", "dill": "cloudpickle"}
    answer, task_id = run(f"import sys; sys.modules[{others[package]!r}] = None\n" + PROGRAM, up.address).split()
    assert answer == "42"
    with treadle.Client(up.address) as client:
        assert client.result(task_id, 30) == 2


CLASSES = """
import dataclasses, sys
import treadle

@dataclasses.dataclass
class Point:
    x: int

class Problem(Exception):
    def __init__(self, status, message):
        super().__init__(status, message)
        self.status, self.message = status, message

def move(point):
    return Point(point.x + 1)

def fail(point):
    raise Problem(point.x, "mine")

with treadle.Client(sys.argv[1]) as client:
    moved = client.submit(move, Point(1)).result(30)
    assert type(moved) is Point and moved == Point(2), moved
    try:
        client.submit(fail, Point(7)).result(30)
    except Problem as problem:
        assert (problem.status, problem.message) == (7, "mine"), vars(problem)
        assert "in fail" in str(problem.__cause__)
        print("caught")
"""


def test_classes_of_main_come_back_as_themselves(up: Up) -> None:
    pytest.importorskip("cloudpickle")
    assert run(CLASSES, up.address) == "caught\n"


def test_what_is_queued_at_exit_is_sent(up: Up) -> None:
    text = """
    import sys, treadle
    client = treadle.Client(sys.argv[1])
    function = client.register_source("at_exit", "def at_exit(n):\\n    return n\\n")
    for n in range(200):
        function.submit(n)
    print(function.id)
    """
    function_id = run(text, up.address).strip()
    with treadle.Client(up.address) as client:
        tasks = list(client.tasks(f"function = {function_id}"))
        assert len(tasks) == 200


def test_threads_share_a_client(client: treadle.Client) -> None:
    errors: list[BaseException] = []

    def work(base: int) -> None:
        try:
            for n in range(20):
                assert client.submit(double, base + n).result(30) == 2 * (base + n)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and not any(t.is_alive() for t in threads)


OBJECTS = """
import copy, dataclasses
class K:
    def __init__(self, n=0): self.n = n
class Slots:
    __slots__ = ("n", "m")
    def __init__(self, n): self.n = n
class MyErr(Exception): pass
def boom(n): raise MyErr(n)
def make(n): return K(n)
def slots(n): return Slots(n)
"""
if sys.version_info >= (3, 10):
    OBJECTS += """
@dataclasses.dataclass(slots=True)
class Pt:
    n: int
@dataclasses.dataclass(slots=True, frozen=True)
class Cold:
    n: int
"""


@pytest.fixture
def script() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(OBJECTS, names)
    return names


@pytest.mark.parametrize("chunksize", [1, 2])
def test_objects_of_the_script_come_back_as_such(
    client: treadle.Client, script: dict[str, Any], chunksize: int
) -> None:
    for found in client.map(script["make"], range(4), chunksize=chunksize):
        assert type(found) is script["K"]
    for name in ("K", "Slots", "Pt", "Cold"):
        if name in script:
            things = [script[name](n) for n in range(3)]
            for found in client.map(copy.copy, things, chunksize=chunksize):
                assert type(found) is script[name], "a function by reference"
    with pytest.raises(script["MyErr"]):
        list(client.map(script["boom"], [1], chunksize=chunksize))


def test_objects_of_the_script_come_back_from_source(client: treadle.Client, script: dict[str, Any]) -> None:
    same = client.register_source("same", "def same(x, *args):\n    return x(*args) if args else x\n")
    assert type(same(script["K"](1))) is script["K"]
    assert type(same([script["Slots"](1)])[0]) is script["Slots"]
    with pytest.raises(script["MyErr"]):
        same(script["boom"], 1)


def test_slots(client: treadle.Client, script: dict[str, Any]) -> None:
    slots = client.submit(script["slots"], 7).result(60)
    assert type(slots) is script["Slots"] and slots.n == 7 and not hasattr(slots, "m")
    for name in ("Pt", "Cold"):
        if name in script:
            assert client.submit(lambda cls: cls(1), script[name]).result(60) == script[name](1)
