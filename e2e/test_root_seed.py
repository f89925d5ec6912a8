"""The root routes with `--rest-compat seed`: results wrapped as one published suite expects."""

from collections.abc import Iterator
from typing import Callable

import pytest
from conftest import show_on_failure
from harness.fabric import LAYOUTS, Fabric, Layout, Mode, start
from harness.root import L, Root
from importable_zoo import double, kill_own_runner, lock, nap, raise_value_error

pytestmark = pytest.mark.layouts(*LAYOUTS)


@pytest.fixture(scope="module")
def seed_fabric(
    mode: Mode, layout: Layout, new_store: Callable[[Layout], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fabric]:
    flags = ["--rest-compat", "seed", "--rest-created-status", "201", "--task-timeout", "1s", "--max-payload", "1MiB"]
    folder = tmp_path_factory.mktemp(f"seed-{layout}-{mode}")
    fabric = start(folder, mode, *flags, slots=2, layout=layout, store=new_store(layout))
    try:
        yield fabric
    finally:
        fabric.close()


@pytest.fixture
def seed(request: pytest.FixtureRequest, seed_fabric: Fabric) -> Root:
    show_on_failure(request, seed_fabric)
    return seed_fabric.root


def test_created_status(seed: Root) -> None:
    resp = seed.post("register_function", {"name": "double", "payload": "no pickle"})
    assert resp.status_code == 400
    function_id = seed.register(double)
    task_id = seed.execute(function_id, 1)
    assert seed.get(f"status/{task_id}").status_code == 200


@pytest.mark.parametrize("number", range(5))
def test_value(seed: Root, number: int) -> None:
    ended = seed.end(seed.run(double, number))
    assert ended.status == "COMPLETED"
    assert isinstance(ended.result, str)
    assert L(ended.result) == 2 * number


def test_function_failure(seed: Root) -> None:
    task_id = seed.run(raise_value_error, "no such luck")
    ended = seed.end(task_id)
    assert ended.status == "FAILED"
    failure = L(L(ended.result))
    assert set(failure) == {"status", "error_type", "message", "task_id", "traceback"}
    assert failure["status"] == "FAILED"
    assert failure["error_type"] == "FunctionExecutionFailure"
    assert failure["task_id"] == task_id
    assert "no such luck" in failure["message"]
    assert "ValueError: no such luck" in failure["traceback"]
    assert "in raise_value_error" in failure["traceback"]


def test_worker_failure(seed: Root) -> None:
    task_id = seed.run(kill_own_runner)
    ended = seed.end(task_id)
    assert ended.status == "FAILED"
    failure = L(ended.result)
    assert failure["status"] == "FAILED"
    assert failure["error_type"] == "WorkerFailureError"
    assert failure["message"].startswith("WorkerFailureError: the task lost its worker")
    assert failure["task_id"] == task_id
    assert failure["worker_id"]


def test_deadline(seed: Root) -> None:
    ended = seed.end(seed.run(nap, 30))
    assert ended.status == "FAILED"
    assert L(ended.result)["error_type"] == "DeadlineExceededError"


def test_result_too_large(seed: Root) -> None:
    ended = seed.end(seed.run(double, "x" * 700_000))
    assert ended.status == "FAILED"
    assert L(ended.result)["error_type"] == "ResourceLimitExceeded"


def test_unpicklable_result(seed: Root) -> None:
    ended = seed.end(seed.run(lock))
    assert ended.status == "FAILED"
    assert ended.body["error"]["error_type"] == "SerializationError"
