"""What clients of the root routes do every day, in each mode."""

import time
from typing import Callable

import pytest
import requests
from harness.fabric import LAYOUTS, Fabric
from harness.functions import AnyFunction, by_reference, by_value
from harness.root import Root, S
from importable_zoo import (
    add,
    add_ten,
    arguments,
    double,
    doubled_items,
    fib,
    nap,
    nap_then,
    raise_memory_error,
    raise_value_error,
    recurse_for_ever,
    square,
    total_and_size,
)

pytestmark = pytest.mark.layouts(*LAYOUTS)

Travel = Callable[[AnyFunction], AnyFunction]
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(params=[by_reference, by_value], ids=["reference", "value"])
def travel(request: pytest.FixtureRequest) -> Travel:
    """How a function reaches the runner."""
    way: Travel = request.param
    return way


def test_fn_registration_invalid(root: Root) -> None:
    resp = requests.post(root.base + "register_function", json={"name": "hello", "payload": "payload"}, timeout=10)
    assert resp.status_code == 400
    assert resp.json()["detail"]


def test_fn_registration(root: Root, travel: Travel) -> None:
    resp = requests.post(
        root.base + "register_function", json={"name": "hello", "payload": S(travel(double))}, timeout=10
    )
    assert resp.status_code in [200, 201]
    assert set(resp.json()) >= {"function_id"}


def test_each_registration_gets_an_id(root: Root) -> None:
    assert root.register(double) != root.register(double)


def test_execute_fn(root: Root, travel: Travel) -> None:
    resp = requests.post(
        root.base + "register_function", json={"name": "hello", "payload": S(travel(double))}, timeout=10
    )
    fn_info = resp.json()
    resp = requests.post(
        root.base + "execute_function",
        json={"function_id": fn_info["function_id"], "payload": S(((2,), {}))},
        timeout=10,
    )
    assert resp.status_code in (200, 201)
    task_id = resp.json()["task_id"]
    resp = requests.get(f"{root.base}status/{task_id}", timeout=10)
    assert resp.status_code == 200
    assert resp.json()["task_id"] == task_id
    assert resp.json()["status"] in ["QUEUED", "RUNNING", "COMPLETED"]
    assert root.value(task_id) == 4


def test_statuses_go_one_way(root: Root) -> None:
    task_id = root.run(nap, 0.3)
    assert root.status(task_id) in ("QUEUED", "RUNNING")
    body = root.get(f"result/{task_id}").json()
    assert body["status"] in ("QUEUED", "RUNNING")
    assert isinstance(body["result"], str)
    assert root.wait_status(task_id, "RUNNING") == "RUNNING"
    assert root.value(task_id) == 0.3
    first = root.get(f"result/{task_id}").json()
    assert root.get(f"result/{task_id}").json() == first


@pytest.mark.parametrize("number", [0, 7, 2**70])
def test_roundtrip(root: Root, travel: Travel, number: int) -> None:
    assert root.value(root.run(travel(double), number)) == 2 * number


def test_keyword_arguments(root: Root, travel: Travel) -> None:
    assert root.value(root.run(travel(add), 1, b=2)) == 3
    assert root.value(root.run(travel(arguments), 1, "two", three=[3], four=None)) == (
        (1, "two"),
        {"three": [3], "four": None},
    )


def test_lambda(root: Root) -> None:
    triple = by_value(lambda x: 3 * x)
    assert triple.__name__ == "<lambda>"
    assert root.value(root.run(triple, 14)) == 42


def test_memory_limit(root: Root, travel: Travel) -> None:
    ended = root.end(root.run(travel(raise_memory_error)))
    assert ended.status == "FAILED"
    assert isinstance(ended.result, MemoryError)
    assert ended.result.error_type == "FunctionExecutionFailure"  # type: ignore[attr-defined]
    assert ended.body["error"]["error_type"] == "FunctionExecutionFailure"
    assert "MemoryError: no memory left" in ended.body["error"]["traceback"]


def test_invalid_function_id(root: Root) -> None:
    resp = root.post("execute_function", {"function_id": UNKNOWN, "payload": S(((2,), {}))})
    assert resp.status_code == 404
    assert resp.json()["detail"]


@pytest.mark.parametrize("task_id", [UNKNOWN, "not-a-uuid"])
def test_invalid_task_id(root: Root, task_id: str) -> None:
    for route in ("status", "result"):
        resp = root.get(f"{route}/{task_id}")
        assert resp.status_code == 404
        assert resp.json()["detail"]


def test_function_error(root: Root, travel: Travel) -> None:
    task_id = root.run(travel(raise_value_error), "no such luck")
    ended = root.end(task_id)
    assert ended.status == "FAILED"
    failure = ended.result
    assert isinstance(failure, ValueError)
    assert failure.args == ("no such luck",)
    attributes = vars(failure)
    assert attributes["status"] == "FAILED"
    assert attributes["error_type"] == "FunctionExecutionFailure"
    assert attributes["task_id"] == task_id
    assert "ValueError: no such luck" in attributes["message"]
    assert "Traceback (most recent call last)" in attributes["message"]
    assert "in raise_value_error" in attributes["traceback"]
    error = ended.body["error"]
    assert error["error_type"] == "FunctionExecutionFailure"
    assert error["exception_type"] == "ValueError"
    assert error["task_id"] == task_id
    assert "no such luck" in error["message"]
    assert "Traceback (most recent call last)" in error["traceback"]
    assert "in raise_value_error" in error["traceback"]


def test_concurrent_execution(root: Root, travel: Travel) -> None:
    function_id = root.register(travel(double))
    tasks = [root.execute(function_id, n) for n in range(50)]
    assert len(set(tasks)) == 50
    assert [root.value(task_id) for task_id in tasks] == [2 * n for n in range(50)]


def test_large_payload(root: Root, travel: Travel) -> None:
    items = list(range(100_000))
    assert root.value(root.run(travel(total_and_size), items)) == (sum(items), 100_000)
    assert root.value(root.run(travel(doubled_items), items)) == [2 * n for n in items]


def test_concurrent_tasks_with_delay(root: Root, travel: Travel) -> None:
    function_id = root.register(travel(nap_then))
    delays = [0.6, 0.1, 0.3]
    started = time.monotonic()
    tasks = [root.execute(function_id, delay, n) for n, delay in enumerate(delays)]
    results = [root.value(task_id) for task_id in tasks]
    assert results == [0, 1, 2]
    assert time.monotonic() - started < sum(delays), "the tasks ran one after the other"


def test_cpu_bound_task(root: Root, travel: Travel) -> None:
    assert root.value(root.run(travel(fib), 10)) == 55


def test_chain_of_tasks(root: Root, travel: Travel) -> None:
    value = 5
    for step in (double, add_ten, square):
        value = root.value(root.run(travel(step), value))
    assert value == ((5 * 2) + 10) ** 2 == 400


def test_recursion_limit(root: Root, travel: Travel) -> None:
    ended = root.end(root.run(travel(recurse_for_ever)))
    assert ended.status == "FAILED"
    assert isinstance(ended.result, RecursionError)
    error = ended.body["error"]
    assert error["error_type"] == "FunctionExecutionFailure"
    assert error["exception_type"] == "RecursionError"
    assert "maximum recursion depth exceeded" in error["message"]
    assert "recurse_for_ever" in error["traceback"]


def test_local_dispatcher_single_task(root: Root, travel: Travel) -> None:
    assert root.value(root.run(travel(add), 1, 2)) == 3


def test_sleeps_run_side_by_side(shared: Fabric) -> None:
    """Four slots, four sleeps of 2 s: together within 2.5 s."""
    root = shared.root
    function_id = root.register(nap)
    started = time.monotonic()
    tasks = [root.execute(function_id, 2) for _ in range(4)]
    assert [root.value(task_id) for task_id in tasks] == [2] * 4
    took = time.monotonic() - started
    assert 2 <= took <= 2.5, f"four sleeps of 2 s took {took:.2f} s"
