"""TaskFuture is a concurrent.futures.Future, whatever happens to its task."""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
import pickle
import threading

import pytest
import treadle
from fake_fabric import FakeFabric
from treadle._gen.treadle.v1 import fabric_pb2 as pb


def test_is_a_real_future(client: treadle.Client) -> None:
    future = client.submit(operator.add, 40, 2)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(10) == 42
    assert future.done() and not future.running() and not future.cancelled()
    assert future.exception() is None
    assert future.status() == "COMPLETED"


def test_wait_and_as_completed(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    futures = [client.submit(operator.neg, n) for n in range(5)]
    fabric.finish(futures[3].task_id, "three")
    done, open_ = concurrent.futures.wait(futures, timeout=10, return_when=concurrent.futures.FIRST_COMPLETED)
    assert done == {futures[3]} and len(open_) == 4
    seen = []
    ended = concurrent.futures.as_completed(futures, timeout=20)
    seen.append(next(ended))
    for n in (4, 0, 2, 1):
        fabric.finish(futures[n].task_id, n)
        seen.append(next(ended))
    assert seen == [futures[n] for n in (3, 4, 0, 2, 1)]


def test_cancelled_futures_count_as_done(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    one, two = client.submit(operator.neg, 1), client.submit(operator.neg, 2)
    assert one.cancel()
    fabric.finish(two.task_id, -2)
    done, open_ = concurrent.futures.wait([one, two], timeout=10)
    assert done == {one, two} and not open_


def test_callbacks_run_before_and_after_the_end(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    called = threading.Event()
    future = client.submit(operator.neg, 1)
    future.add_done_callback(lambda f: called.set())
    assert not called.is_set()
    fabric.finish(future.task_id, -1)
    assert called.wait(10)
    late: list[object] = []
    future.add_done_callback(late.append)
    assert late == [future]


def test_callback_may_submit(client: treadle.Client) -> None:
    chained: concurrent.futures.Future[int] = concurrent.futures.Future()
    first = client.submit(operator.add, 1, 1)
    first.add_done_callback(lambda f: chained.set_result(client.submit(operator.mul, f.result(), 21).result(10)))
    assert chained.result(10) == 42


def test_result_timeout(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    future = client.submit(operator.neg, 1)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.01)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(0)
    assert not future.done()


def test_asyncio(client: treadle.Client) -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*(asyncio.wrap_future(client.submit(operator.neg, n)) for n in range(10))))

    assert asyncio.run(main()) == [-n for n in range(10)]


def test_cancel_before_it_is_sent(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    function = client.register(operator.neg)
    gate = fabric.hold("ExecuteBatch")
    first = function.submit(1)
    assert fabric.arrived["ExecuteBatch"].wait(10)
    second = function.submit(2)
    assert second.cancel() and second.cancelled() and second.done()
    with pytest.raises(treadle.Cancelled):
        second.task_id  # noqa: B018
    gate.set()
    assert first.task_id in fabric.requests
    assert len(fabric.requests) == 1 and fabric.cancelled == []


def test_cancel_while_it_is_sent(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    function = client.register(operator.neg)
    gate = fabric.hold("ExecuteBatch")
    future = function.submit(1)
    assert fabric.arrived["ExecuteBatch"].wait(10)
    answer: list[bool] = []
    canceller = threading.Thread(target=lambda: answer.append(future.cancel()))
    canceller.start()
    gate.set()
    canceller.join(10)
    assert answer == [True]
    assert fabric.cancelled == [future.task_id]


def test_cancel_of_a_recorded_task(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    future = client.submit(operator.neg, 1)
    fabric.wait_for(lambda: len(fabric.streams) == 1)
    assert future.cancel() and future.cancelled()
    assert future.cancel(), "again"
    with pytest.raises(treadle.Cancelled) as info:
        future.result(1)
    assert isinstance(info.value, concurrent.futures.CancelledError)
    assert isinstance(info.value, treadle.TaskFailed)
    assert info.value.task_id == future.task_id
    with pytest.raises(concurrent.futures.CancelledError):
        future.exception(1)


def test_cancel_comes_too_late(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    gate = fabric.hold("AwaitResults")
    future = client.submit(operator.neg, 1)
    fabric.finish(future.task_id, -1)
    assert not future.cancel(), "the server says that it was completed"
    assert not future.cancelled()
    gate.set()
    assert future.result(10) == -1
    assert not future.cancel()


def test_cancelled_by_someone_else(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    future = client.submit(operator.neg, 1)
    called = threading.Event()
    future.add_done_callback(lambda f: called.set())
    error = pb.TaskError(error_type="Cancelled", message="the task was cancelled by a client")
    fabric.end(future.task_id, status=pb.Task.CANCELLED, error=error)
    assert called.wait(10)
    assert future.cancelled()
    with pytest.raises(treadle.Cancelled):
        future.result(0)


def test_many_threads_cancel_one_future(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    future = client.submit(operator.neg, 1)
    calls: list[object] = []
    future.add_done_callback(calls.append)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: future.cancel(), range(32)))
    assert calls == [future]


def test_does_not_travel(client: treadle.Client) -> None:
    future = client.submit(operator.neg, 1)
    with pytest.raises(TypeError, match="result"):
        pickle.dumps(future)
    with pytest.raises(treadle.PicklingError, match="result"):
        client.submit(operator.neg, future)
