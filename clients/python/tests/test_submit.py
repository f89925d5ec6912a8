"""Submissions travel together, once each, whatever the connection does."""

from __future__ import annotations

import concurrent.futures
import operator
import threading

import grpc
import pytest
import treadle
from fake_fabric import FakeFabric, Fault
from treadle import _submit

GONE = grpc.StatusCode.UNAVAILABLE


def test_what_queues_up_travels_together(fabric: FakeFabric, client: treadle.Client) -> None:
    function = client.register(operator.neg)
    gate = fabric.hold("ExecuteBatch")
    first = function.submit(0)
    assert fabric.arrived["ExecuteBatch"].wait(10)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        rest = list(pool.map(function.submit, range(1, 1000)))
    gate.set()
    assert [f.result(20) for f in [first, *rest]] == [-n for n in range(1000)]
    assert fabric.batches == [1, 999]


def test_a_batch_has_limits(fabric: FakeFabric, client: treadle.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_submit, "_MAX_ITEMS", 10)
    monkeypatch.setattr(_submit, "_MAX_BYTES", 5000)
    function = client.register(len)
    gate = fabric.hold("ExecuteBatch")
    futures = [function.submit("x")]
    assert fabric.arrived["ExecuteBatch"].wait(10)
    futures += [function.submit("x") for _ in range(25)]
    futures += [function.submit("x" * 2000) for _ in range(5)]
    futures += [function.submit("x" * 9000)]
    gate.set()
    concurrent.futures.wait(futures, timeout=20)
    assert all(f.result(0) for f in futures)
    # The fourth ends by its bytes, with the rest of the small ones and two of the large.
    assert fabric.batches == [1, 10, 10, 7, 2, 1, 1]


def test_a_full_queue_makes_submit_wait(
    fabric: FakeFabric, client: treadle.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_submit, "_MAX_QUEUED_ITEMS", 3)
    function = client.register(operator.neg)
    gate = fabric.hold("ExecuteBatch")
    futures = [function.submit(0)]
    assert fabric.arrived["ExecuteBatch"].wait(10)
    futures += [function.submit(n) for n in range(1, 4)]
    entered, left = threading.Event(), threading.Event()

    def one_too_many() -> None:
        entered.set()
        futures.append(function.submit(4))
        left.set()

    threading.Thread(target=one_too_many, daemon=True).start()
    assert entered.wait(10)
    assert not left.wait(0.2), "it must wait for room"
    gate.set()
    assert left.wait(10)
    assert [f.result(10) for f in futures] == [0, -1, -2, -3, -4]


def test_a_lost_answer_is_found_again(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.fail("ExecuteBatch", Fault(GONE, late=True), Fault(GONE))
    assert client.submit(operator.neg, 1).result(10) == -1
    assert len(fabric.requests) == 1, "recorded once"
    assert len(fabric.batches) == 2, "asked twice"


def test_a_lost_registration_is_found_again(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.fail("RegisterFunction", Fault(GONE, late=True))
    client.register(operator.neg)
    assert len(fabric.functions) == 1


def test_gives_up_in_the_end(fabric: FakeFabric) -> None:
    with treadle.Client(fabric.address, timeout=0.3) as client:
        function = client.register(operator.neg)
        fabric.fail("ExecuteBatch", *(Fault(GONE, "away") for _ in range(100)))
        future = function.submit(1)
        with pytest.raises(treadle.Unavailable, match="no server answered"):
            future.result(10)
        with pytest.raises(treadle.Unavailable):
            future.task_id  # noqa: B018
        assert not future.cancel()


def test_nobody_listens_any_more(fabric: FakeFabric, caplog: pytest.LogCaptureFixture) -> None:
    with treadle.Client(fabric.address, timeout=1) as client:
        client.register(operator.neg)
        fabric.stop()
        with pytest.raises(treadle.Unavailable, match=f"no server answered at {fabric.address} within 1 s"):
            client.info()
    assert f"no server answers at {fabric.address}" in caplog.text


def test_refused_items_fail_alone(fabric: FakeFabric, client: treadle.Client) -> None:
    function = client.register(operator.neg)
    gate = fabric.hold("ExecuteBatch")
    futures = [function.submit(0)]
    assert fabric.arrived["ExecuteBatch"].wait(10)
    futures += [function.submit(1), function.options(priority=10).submit(2), function.submit(3)]
    gate.set()
    with pytest.raises(treadle.InvalidRequest, match="priority") as info:
        futures[2].result(10)
    assert info.value.reason == "INVALID_REQUEST"
    assert [futures[n].result(10) for n in (0, 1, 3)] == [0, -1, -3]


def test_a_batch_that_fails_fails_each(fabric: FakeFabric, client: treadle.Client) -> None:
    function = client.register(operator.neg)
    gate = fabric.hold("ExecuteBatch")
    fabric.fail("ExecuteBatch", *(Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "disk full", "EXHAUSTED") for _ in "12"))
    futures = [function.submit(n) for n in range(3)]
    gate.set()
    errors = [f.exception(10) for f in futures]
    assert all(isinstance(e, treadle.Exhausted) for e in errors)
    assert len({id(e) for e in errors}) == 3, "raising one must not write to another"


def test_functions_are_registered_once(fabric: FakeFabric, client: treadle.Client) -> None:
    barrier = threading.Barrier(16)

    def submit(n: int) -> int:
        barrier.wait(10)
        return int(client.submit(operator.neg, n).result(10))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(submit, range(16))) == list(range(-15, 1))
    assert [f.transient for f in fabric.functions.values()] == [True]
    # What the program registers by itself stays.
    assert client.register(operator.neg).id == client.register(operator.neg).id
    assert [f.transient for f in fabric.functions.values()] == [True, False]


def test_registered_bytes_are_not_registered_again(fabric: FakeFabric, client: treadle.Client) -> None:
    def double(x: int) -> int:
        return 2 * x

    function = client.register(double)
    future = client.submit(double, 21)
    assert future.result(10) == 42
    assert [(id, f.transient) for id, f in fabric.functions.items()] == [(function.id, False)]


def test_a_function_is_deleted(fabric: FakeFabric, client: treadle.Client) -> None:
    function = client.register(operator.neg)
    client.delete_function(function)
    assert fabric.functions == {}
    with pytest.raises(treadle.NotFound):
        client.delete_function(function.id)
    assert client.register(operator.neg).id != function.id


def test_other_names_and_queues_are_other_registrations(fabric: FakeFabric, client: treadle.Client) -> None:
    ids = {
        client.register(operator.neg).id,
        client.register(operator.neg, name="minus").id,
        client.register(operator.neg, queue="gpu").id,
    }
    assert len(ids) == 3
    assert [f.queue for f in fabric.functions.values()] == ["default", "default", "gpu"]


def test_a_failed_registration_is_tried_again(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.fail("RegisterFunction", Fault(grpc.StatusCode.PERMISSION_DENIED, "not you", "DENIED"))
    with pytest.raises(treadle.PermissionDenied) as info:
        client.submit(operator.neg, 1).result(10)
    assert info.value.reason == "DENIED"
    assert client.submit(operator.neg, 1).result(10) == -1


def test_a_server_that_forgot_a_function_is_told_again(fabric: FakeFabric, client: treadle.Client) -> None:
    factor = 2
    for n, function in enumerate((operator.neg, lambda x: x * factor)):
        assert client.submit(function, 1).result(10) == (-1, 2)[n]
        fabric.functions.clear()  # its store was in memory, or it keeps no function that nobody uses
        assert list(client.map(function, [2, 3])) == [[-2, -3], [4, 6]][n]
        assert len(fabric.functions) == 1


def test_a_registration_that_is_gone_is_told(fabric: FakeFabric, client: treadle.Client) -> None:
    function = client.register(operator.neg)
    fabric.functions.clear()
    with pytest.raises(treadle.NotFound):  # its name and queue were the caller's choice, and so is what comes now
        function.submit(1).result(10)


def test_submit_does_not_wait_for_the_server(fabric: FakeFabric, client: treadle.Client) -> None:
    client.register(operator.neg, name="minus")
    gates = [fabric.hold(method) for method in ("RegisterFunction", "GetFunction", "ExecuteBatch")]
    futures = [client.submit(operator.abs, -1), client.submit("minus", 2), client.submit(lambda: 3)]
    assert not any(future.done() for future in futures)
    for gate in gates:
        gate.set()
    assert [future.result(10) for future in futures] == [1, -2, 3]


def test_no_server_at_all_fails_futures_and_not_submit() -> None:
    with treadle.Client("127.0.0.1:1", timeout=0.3) as client:
        futures = [client.submit(operator.neg, 1), client.submit(operator.neg, 2), client.submit("minus", 1)]
        for future in futures:
            with pytest.raises(treadle.Unavailable, match="nothing listens at 127.0.0.1:1"):
                future.result(10)


def test_close_sends_functions_that_are_new(fabric: FakeFabric) -> None:
    gate = fabric.hold("RegisterFunction")
    client = treadle.Client(fabric.address, timeout=10)
    client.submit(operator.neg, 1)
    assert fabric.arrived["RegisterFunction"].wait(10)
    client.submit(operator.abs, 1)
    threading.Timer(0.1, gate.set).start()
    client.close()
    assert len(fabric.requests) == 2


def test_functions_by_name_and_id(fabric: FakeFabric, client: treadle.Client) -> None:
    function = client.register(operator.neg, name="minus")
    fabric.auto = False
    by_name, by_id = client.submit("minus", 1), client.submit(function.id, 2)
    assert fabric.requests[by_name.task_id].function == "minus"
    assert fabric.requests[by_id.task_id].function == function.id
    with pytest.raises(treadle.NotFound):
        client.submit("plus", 1).result(10)
    with pytest.raises(treadle.InvalidRequest):
        client.submit(7, 1)  # type: ignore[call-overload]


def test_arguments_travel_as_json_where_the_function_is_not_python(fabric: FakeFabric, client: treadle.Client) -> None:
    function = client.register(operator.neg, name="resize")
    fabric.runtimes[function.id] = "go/resize"
    fabric.auto = False
    future = client.submit("resize", 1, "ä", size=[2, None])
    request = fabric.requests[future.task_id]
    assert (request.args, request.kwargs, request.payload) == ('[1,"ä"]'.encode(), b'{"size":[2,null]}', b"")
    with pytest.raises(treadle.PicklingError, match="JSON"):
        client.submit("resize", {1, 2})


def test_options(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    urgent = client.options(priority=9, timeout=1.5)
    future = urgent.submit(operator.neg, 1, options=treadle.Options(priority=7, max_retries=0))
    sent = fabric.requests[future.task_id].options
    assert (sent.priority, sent.timeout.ToMilliseconds(), sent.max_retries) == (7, 1500, 0)
    assert not sent.HasField("function_retries") and not sent.HasField("deadline")
    plain = client.submit(operator.neg, 1)
    assert not fabric.requests[plain.task_id].HasField("options"), "a view leaves the client as it is"
    other: treadle.TaskFuture[object] = client.submit(dict, options="the function's own")
    assert fabric.requests[other.task_id].payload.count(b"the function's own") == 1
