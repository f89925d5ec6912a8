"""Client.map: in order, bounded, and tidy when it ends early."""

from __future__ import annotations

import concurrent.futures
import itertools
import operator
import pickle
from collections.abc import Iterator

import pytest
import treadle
from fake_fabric import FakeFabric
from treadle._gen.treadle.v1 import fabric_pb2 as pb


def test_results_come_in_order(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    results = client.map(operator.neg, range(20))
    fabric.wait_for(lambda: len(fabric.requests) == 20)
    for id in reversed(list(fabric.requests)):
        fabric.finish(id, operator.neg(_argument(fabric, id)))
    assert list(results) == [-n for n in range(20)]


def _argument(fabric: FakeFabric, id: str) -> int:
    args, _ = pickle.loads(fabric.requests[id].payload)
    return int(args[0])


def test_starts_before_it_is_read(fabric: FakeFabric, client: treadle.Client) -> None:
    client.map(operator.neg, range(3))
    fabric.wait_for(lambda: len(fabric.requests) == 3)


def test_is_bounded(fabric: FakeFabric, client: treadle.Client) -> None:
    taken = []

    def endless() -> Iterator[int]:
        for n in itertools.count():
            taken.append(n)
            yield n

    results = client.map(operator.neg, endless(), buffersize=10)
    assert len(taken) == 10
    assert list(itertools.islice(results, 25)) == [-n for n in range(25)]
    assert len(taken) == 35
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(taken) == 35


def test_several_iterables_and_empty_ones(client: treadle.Client) -> None:
    assert list(client.map(operator.add, [1, 2, 3], [10, 20])) == [11, 22]
    assert list(client.map(operator.add, [], [1])) == []
    with pytest.raises(TypeError):
        client.map(operator.add)
    with pytest.raises(ValueError):
        client.map(operator.neg, [1], buffersize=0)


def test_a_failure_comes_in_its_place_and_cancels_the_rest(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    results = client.map(operator.neg, range(5))
    fabric.wait_for(lambda: len(fabric.requests) == 5)
    by_argument = {_argument(fabric, id): id for id in fabric.requests}
    fabric.finish(by_argument[0], 0)
    error = pb.TaskError(error_type="WorkerFailureError", message="gone")
    fabric.end(by_argument[1], status=pb.Task.FAILED, error=error)
    assert next(results) == 0
    with pytest.raises(treadle.WorkerFailureError):
        next(results)
    assert sorted(fabric.cancelled) == sorted(by_argument[n] for n in (2, 3, 4))
    with pytest.raises(StopIteration):
        next(results)


def test_timeout(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    results = client.map(operator.neg, range(3), timeout=0.05)
    fabric.wait_for(lambda: len(fabric.requests) == 3)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    assert len(fabric.cancelled) == 3


def test_options(fabric: FakeFabric, client: treadle.Client) -> None:
    list(client.map(operator.neg, [1, 2], options=treadle.Options(priority=8)))
    assert {r.options.priority for r in fabric.requests.values()} == {8}


def test_chunks() -> None:
    from treadle.testing import LocalClient

    client = LocalClient()
    function = client.register(operator.add)
    assert list(function.map(range(10), range(10), chunksize=4)) == [2 * n for n in range(10)]
    assert [t.function_name for t in client.tasks()] == ["add (chunks)"] * 3
    with pytest.raises(treadle.InvalidRequest):
        client.map("add", [1], [2], chunksize=2)
