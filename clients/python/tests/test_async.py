"""In an event loop: nothing waits that should not, and a future can be awaited."""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
import time

import pytest
import treadle
from fake_fabric import FakeFabric


def test_await(fabric: FakeFabric) -> None:
    async def main() -> None:
        async with treadle.Client(fabric.address) as client:
            assert await client.submit(operator.neg, 1) == -1
            assert await asyncio.gather(*(client.submit(operator.neg, n) for n in range(50))) == [-n for n in range(50)]
            done = client.submit(operator.neg, 2)
            concurrent.futures.wait([done])
            assert await done == -2
            with pytest.raises(treadle.NotFound):
                await client.submit("nobody registered this")
        with pytest.raises(treadle.ClientClosed):
            client.submit(operator.neg, 1)

    asyncio.run(main())


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_loop_does_not_wait_for_a_cancel(fabric: FakeFabric, client: treadle.Client, wrapped: bool) -> None:
    fabric.auto = False
    gate = fabric.hold("CancelTask")

    async def main() -> list[treadle.TaskFuture[int]]:
        futures = [client.submit(operator.neg, n) for n in range(50)]
        await asyncio.get_running_loop().run_in_executor(None, lambda: [future.task_id for future in futures])
        start = time.monotonic()
        for future in futures:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(future) if wrapped else future, 0.001)
        assert time.monotonic() - start < 10, "CancelTask answers only later"
        return futures

    futures = asyncio.run(main())
    assert all(future.cancelled() for future in futures)
    assert fabric.cancelled == []
    gate.set()
    fabric.wait_for(lambda: sorted(fabric.cancelled) == sorted(f.task_id for f in futures))


def test_what_is_cancelled_on_its_way_is_cancelled_there(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    gate = fabric.hold("ExecuteBatch")
    future = client.submit(operator.neg, 1)
    assert fabric.arrived["ExecuteBatch"].wait(10)

    async def main() -> None:
        assert future.cancel() and future.cancelled()

    asyncio.run(main())
    gate.set()
    fabric.wait_for(lambda: fabric.cancelled != [])
    assert fabric.cancelled == list(fabric.requests)


def test_close_sends_cancels_first(fabric: FakeFabric) -> None:
    fabric.auto = False

    async def main() -> None:
        async with treadle.Client(fabric.address) as client:
            futures = [client.submit(operator.neg, n) for n in range(5)]
            for future in futures:
                future.cancel()

    asyncio.run(main())
    assert sorted(fabric.cancelled) == sorted(fabric.requests), "those that had left"


def test_only_queued(fabric: FakeFabric, client: treadle.Client) -> None:
    from treadle._gen.treadle.v1 import fabric_pb2 as pb

    fabric.auto = False
    running, queued = client.submit(operator.neg, 1), client.submit(operator.neg, 2)
    task_id = running.task_id
    with fabric.changed:
        fabric.results[task_id].status = pb.Task.RUNNING
    assert not running.cancel(only_queued=True) and not running.done()
    assert queued.cancel(only_queued=True) and queued.cancelled()
    assert not client.cancel(running.task_id, only_queued=True)

    fabric.finish(running.task_id, -1)
    assert running.result(10) == -1


def test_a_wait_that_ends_says_what_it_waits_for(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    future = client.submit(operator.neg, 1)
    task_id = future.task_id
    for timeout, words in ((0.01, "is QUEUED in the queue '' after 0.01 s"), (0, "is not finished after 0 s")):
        with pytest.raises(concurrent.futures.TimeoutError) as info:
            future.result(timeout)
        assert str(info.value) == f"task {task_id} of 'neg' {words}; client.task({task_id!r}) shows its record"
    gate = fabric.hold("ExecuteBatch")
    with pytest.raises(concurrent.futures.TimeoutError, match="of 'neg' was not recorded within 0.01 s"):
        client.submit(operator.neg, 1).result(0.01)
    gate.set()


def test_repr(fabric: FakeFabric, client: treadle.Client) -> None:
    future = client.submit(operator.neg, 1)
    future.result(10)
    assert repr(future) == f"<TaskFuture of 'neg', task {future.task_id}: finished>"
