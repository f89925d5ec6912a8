"""Results arrive once each, by few streams, through every kind of interruption."""

from __future__ import annotations

import concurrent.futures
import operator
import threading
import time

import grpc
import pytest
import treadle
from fake_fabric import FakeFabric, Fault
from treadle import _await
from treadle._gen.treadle.v1 import fabric_pb2 as pb

GONE = grpc.StatusCode.UNAVAILABLE


def test_a_lost_stream_is_opened_again(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    fabric.fail("AwaitResults", Fault(GONE), Fault(grpc.StatusCode.CANCELLED), Fault(grpc.StatusCode.UNAVAILABLE))
    future = client.submit(operator.neg, 1)
    fabric.wait_for(lambda: len(fabric.streams) == 1)
    fabric.finish(future.task_id, -1)
    assert future.result(10) == -1


def test_a_stream_lost_half_way_brings_the_rest(fabric: FakeFabric, client: treadle.Client) -> None:
    function = client.register(operator.neg)
    gate = fabric.hold("ExecuteBatch")
    futures = [function.submit(n) for n in range(2)]
    fabric.fail("AwaitResults", *(Fault(GONE, late=True) for _ in range(3)))
    gate.set()
    assert [f.result(10) for f in futures] == [0, -1]


def test_many_groups_share_few_streams(
    fabric: FakeFabric, client: treadle.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_await, "_MAX_STREAMS", 3)
    fabric.auto = False
    futures = []
    for n in range(25):
        futures.append(client.submit(operator.neg, n))
        futures[-1].task_id  # noqa: B018 - so that each is a group of its own
    fabric.wait_for(lambda: fabric.open_streams <= 3 and sum(map(len, fabric.streams[-3:])) > 0)
    for future in reversed(futures):
        fabric.finish(future.task_id, "done")
    assert [f.result(20) for f in futures] == ["done"] * 25
    fabric.wait_for(lambda: fabric.open_streams == 0)
    # Closing a stream and opening another overlap, by one merge at most.
    assert fabric.most_streams <= 3 + 3
    assert sum(map(len, fabric.streams)) < 25 * 25 / 2, "not every id again for every newcomer"


def test_streams_have_a_limit_of_ids(
    fabric: FakeFabric, client: treadle.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_await, "_MAX_STREAMS", 1)
    monkeypatch.setattr(_await, "_MAX_IDS", 4)
    fabric.auto = False
    futures = []
    for n in range(10):
        futures.append(client.submit(operator.neg, n))
        futures[-1].task_id  # noqa: B018
    for future in futures:
        fabric.finish(future.task_id, "done")
    assert [f.result(20) for f in futures] == ["done"] * 10
    assert max(map(len, fabric.streams)) <= 4


def test_forgotten_tasks_fail_alone(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    function = client.register(operator.neg)
    gate = fabric.hold("ExecuteBatch")
    awaits = fabric.hold("AwaitResults")
    futures = [function.submit(n) for n in range(3)]
    gate.set()
    ids = [f.task_id for f in futures]
    with fabric.changed:
        del fabric.results[ids[1]]
    awaits.set()
    with pytest.raises(treadle.NotFound):
        futures[1].result(10)
    fabric.finish(ids[0], "a")
    fabric.finish(ids[2], "c")
    assert (futures[0].result(10), futures[2].result(10)) == ("a", "c")


def test_gives_up_when_no_server_comes_back(fabric: FakeFabric) -> None:
    fabric.auto = False
    with treadle.Client(fabric.address, timeout=0.4) as client:
        future = client.submit(operator.neg, 1)
        fabric.wait_for(lambda: len(fabric.streams) == 1)
        fabric.stop()
        with pytest.raises(treadle.Unavailable):
            future.result(20)
        assert future.task_id, "whoever has the id can wait for the task anew"


def test_a_server_restarts(fabric: FakeFabric) -> None:
    fabric.auto = False
    with treadle.Client(fabric.address, timeout=20) as client:
        futures = [client.submit(operator.neg, n) for n in range(3)]
        ids = [f.task_id for f in futures]
        fabric.wait_for(lambda: fabric.open_streams > 0)
        address = fabric.address
        fabric.stop()
        late: list[treadle.TaskFuture[int]] = []
        while_away = threading.Thread(target=lambda: late.append(client.submit(operator.neg, 3)))
        while_away.start()
        while_away.join(10)
        fabric.start(address)
        for id in [*ids, late[0].task_id]:
            fabric.finish(id, "survived")
        assert [f.result(20) for f in [*futures, *late]] == ["survived"] * 4


def test_a_wait_longer_than_the_timeout_survives_a_lost_connection(fabric: FakeFabric) -> None:
    fabric.auto = False
    timeout = 0.4
    with treadle.Client(fabric.address, timeout=timeout) as client:
        future = client.submit(operator.neg, 1)
        fabric.fail("AwaitResults", Fault(grpc.StatusCode.UNAVAILABLE, "the server is closing"))
        gate = fabric.hold("AwaitResults")
        task_id = future.task_id
        assert fabric.arrived["AwaitResults"].wait(20)
        time.sleep(2 * timeout)  # what is tested is the passing of time
        gate.set()
        fabric.finish(task_id, "survived")
        assert future.result(20) == "survived"


def test_future_of_a_recorded_task(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    id = client.submit(operator.neg, 1).task_id
    one, two = client.future(id), client.future(id.upper())
    assert one.task_id == two.task_id == id
    fabric.finish(id, -1)
    assert (one.result(10), two.result(10)) == (-1, -1)
    with pytest.raises(treadle.NotFound):
        client.future("no such id")


def test_result_by_id(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    id = client.submit(operator.neg, 1).task_id
    assert client.status(id) == "QUEUED" and not client.status(id).terminal
    start = time.monotonic()
    with pytest.raises(concurrent.futures.TimeoutError, match=id):
        client.result(id, 0.05)
    assert time.monotonic() - start < 5
    with pytest.raises(concurrent.futures.TimeoutError):
        client.result(id, 0)
    fabric.finish(id, -1)
    assert client.result(id) == -1
    assert not client.cancel(id)
    with pytest.raises(treadle.NotFound):
        client.result("no such id", 0)


def test_close_sends_what_is_queued(fabric: FakeFabric) -> None:
    fabric.auto = False
    client = treadle.Client(fabric.address, timeout=10)
    function = client.register(operator.neg)
    gate = fabric.hold("ExecuteBatch")
    futures = [function.submit(n) for n in range(10)]
    closing = threading.Thread(target=client.close)
    closing.start()
    gate.set()
    closing.join(10)
    assert len(fabric.requests) == 10
    for future in futures:
        with pytest.raises(treadle.ClientClosed, match="goes on"):
            future.result(0)
        assert future.task_id in fabric.requests
    client.close()
    with pytest.raises(treadle.ClientClosed):
        function.submit(1)
    with pytest.raises(treadle.ClientClosed):
        client.info()


def test_close_wakes_who_waits(fabric: FakeFabric) -> None:
    fabric.auto = False
    client = treadle.Client(fabric.address, timeout=10)
    id = client.submit(operator.neg, 1).task_id
    fabric.hold("GetResult")
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            client.result(id)
        except treadle.TreadleError as exc:
            caught.append(exc)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert fabric.arrived["GetResult"].wait(10)
    client.close()
    waiting.join(10)
    assert len(caught) == 1 and isinstance(caught[0], treadle.ClientClosed)


def test_close_leaves_no_thread(fabric: FakeFabric) -> None:
    fabric.auto = False
    before = {t for t in threading.enumerate() if t.name.startswith("treadle")}
    with treadle.Client(fabric.address, timeout=10) as client:
        client.submit(operator.neg, 1).task_id  # noqa: B018
        fabric.wait_for(lambda: len(fabric.streams) == 1)
        assert {t for t in threading.enumerate() if t.name.startswith("treadle")} - before
    assert {t for t in threading.enumerate() if t.name.startswith("treadle")} <= before


@pytest.mark.parametrize(
    ("error_type", "expected"),
    [
        ("WorkerFailureError", treadle.WorkerFailureError),
        ("DeadlineExceededError", treadle.DeadlineExceededError),
        ("ResourceLimitExceeded", treadle.ResourceLimitExceeded),
        ("SerializationError", treadle.SerializationError),
        ("SomethingOfNextYear", treadle.TaskFailed),
    ],
)
def test_failure_classes(
    fabric: FakeFabric, client: treadle.Client, error_type: str, expected: type[treadle.TaskFailed]
) -> None:
    fabric.auto = False
    future = client.submit(operator.neg, 1)
    error = pb.TaskError(error_type=error_type, message="why", task_id=future.task_id, worker_id="w1")
    fabric.end(future.task_id, status=pb.Task.FAILED, error=error)
    with pytest.raises(treadle.TaskFailed, match="why") as info:
        future.result(10)
    assert type(info.value) is expected
    assert (info.value.error_type, info.value.worker_id, info.value.task_id) == (error_type, "w1", future.task_id)
