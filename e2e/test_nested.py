"""Running tasks submit tasks of their own, with a token that ends with the attempt."""

from pathlib import Path

import grpc
import pytest
from conftest import Own
from harness.fabric import Fabric, Mode
from harness.v1 import V1
from harness.wait import until

SUM = """
import os
import treadle

def parent(n):
    with treadle.Client() as client:
        square = client.register_source("child", CHILD)
        futures = [client.submit(square, x) for x in range(n)]
        answers = [future.result(30) for future in futures]
        record = client.task(futures[0].task_id)
        token = __import__("_treadle_task").api()["token"]
    told = " ".join([*map("=".join, os.environ.items()), open("/proc/self/cmdline").read()])
    assert record.parent_id == treadle.current_task().id
    return {
        "sum": sum(answer[0] for answer in answers),
        "retries": record.options.max_retries,
        "parents": sorted({answer[1] for answer in answers}),
        "id": treadle.current_task().id,
        "parent": treadle.current_task().parent,
        "address": client.address,
        "settings": [name for name in os.environ if name.startswith("TREADLE")],
        "told": "tdt_" in told or "tdl_" in told or token in told,
        "token": token,
    }

CHILD = '''
def child(x):
    import treadle
    return x * x, treadle.current_task().parent
'''
"""


def source(v1: V1, text: str, name: str = "parent") -> str:
    made = v1.post("/v1/functions", {"name": name, "source": text})
    function = made["function_id"]
    assert isinstance(function, str)
    return function


@pytest.mark.layouts("embedded", "redis", "split")
def test_a_task_sums_what_its_children_return(shared: Fabric, mode: Mode) -> None:
    v1 = shared.v1
    answer = v1.call(source(v1, SUM), 3)
    assert answer["status"] == "COMPLETED", answer
    told = answer["result"]
    assert told["sum"] == 5
    assert told["parents"] == [told["id"]] == [answer["task_id"]]
    assert told["parent"] is None
    assert told["retries"] == 3  # what servers give tasks that do not say
    assert told["settings"] == [] and told["told"] is False
    # Where its worker is attached, which in the split layout is no server.
    assert told["address"] in shared.dispatcher_addrs
    # The attempt has ended, and its token with it.
    with grpc.insecure_channel(told["address"]) as channel:
        call = channel.unary_unary("/treadle.v1.FabricService/GetTask", lambda m: m, lambda m: m)
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", metadata=(("authorization", f"Bearer {told['token']}"),), timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, refused.value
    assert "ended with its attempt" in (refused.value.details() or "")
    for process in shared.processes:
        assert told["token"] not in process.log()


GOES_ON = """
import os, time
import treadle

def parent(folder):
    done = 0
    with treadle.Client() as client:
        child = client.register_source("child", "def child(x):\\n    return x + 1")
        deadline = time.monotonic() + 300
        while not os.path.exists(os.path.join(folder, "enough")):
            if time.monotonic() > deadline:
                raise TimeoutError("the test made no file 'enough' within 300 s")
            done = client.submit(child, done).result(30)
            with open(os.path.join(folder, "done"), "w") as file:
                file.write(str(done))
            time.sleep(0.02)
        return {"done": done, "attempt": treadle.current_task().attempt}
"""


@pytest.mark.layouts("split")
@pytest.mark.parametrize("mode", ["push", "pull"])
def test_children_go_on_while_dispatchers_come_and_go(own: Own, mode: Mode, tmp_path: Path) -> None:
    """The worker moves, and what runs on it finds the other dispatcher, in one attempt."""
    fabric = own.start(mode, "--lease", "6s", "--reconnect-grace", "4s", slots=2)
    fabric.worker(mode, slots=2)
    task = fabric.v1.submit(source(fabric.v1, GOES_ON), str(tmp_path))

    def more(than: int) -> int:
        def look() -> int:
            assert fabric.v1.task(task)["status"] in ("QUEUED", "RUNNING"), fabric.v1.result(task)
            file = tmp_path / "done"
            text = file.read_text() if file.exists() else ""
            return int(text) if text and int(text) > than else 0

        return until(look, "more children", timeout=40)

    done = more(3)
    for node in fabric.dispatchers:
        node.process.stop()
        done = more(done + 5)
        node.restart()
        done = more(done + 5)
    (tmp_path / "enough").touch()
    told = fabric.v1.value(task)
    assert told["attempt"] == 1, told
    assert told["done"] >= done


WAITS = """
import treadle

def parent(seconds):
    with treadle.Client() as client:
        child = client.register_source("child", "def child():\\n    return 1")
        future = client.submit(child)
        try:
            return future.result(seconds)
        except TimeoutError as exc:
            return str(exc)
        except Exception as exc:  # concurrent.futures.TimeoutError, before Python 3.11
            return type(exc).__name__ + str(exc)
"""


def test_a_worker_that_waits_for_itself_is_told_of(own: Own) -> None:
    fabric = own.up(slots=1)
    v1: V1 = fabric.v1
    stuck = v1.submit(source(v1, WAITS), 60)
    until(lambda: v1.task(stuck)["status"] == "RUNNING", "the parent to start", timeout=20)

    def told() -> bool:
        assert v1.task(stuck)["status"] == "RUNNING"
        return "--slots MIN-MAX" in fabric.up.log()

    until(told, "a warning in the log", timeout=30)
    # Another worker is what was missing.
    fabric.worker("push")
    assert v1.value(stuck, wait=40) == 1
    assert fabric.up.log().count("--slots MIN-MAX") == 1


def test_a_pool_that_grows_is_not_stuck(own: Own) -> None:
    fabric = own.up("--slots", "1-2")
    assert fabric.v1.call(source(fabric.v1, WAITS), 60)["result"] == 1
    assert "--slots MIN-MAX" not in fabric.up.log()


def test_a_timeout_in_a_task_names_the_slot(own: Own) -> None:
    fabric = own.up(slots=1)
    told = fabric.v1.call(source(fabric.v1, WAITS), 1)["result"]
    assert "QUEUED" in told and "--slots MIN-MAX" in told, told


def test_explicit_addresses_are_kept(shared: Fabric) -> None:
    """A client that is told where to go goes there."""
    text = "import treadle\ndef parent(address):\n    return treadle.Client(address).info().durability"
    answer = shared.v1.call(source(shared.v1, text), shared.grpc_addr)
    assert answer["result"] == "embedded", answer  # which is not for the tokens of tasks to ask
