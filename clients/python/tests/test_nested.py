"""A client inside of a running task, told of its dispatcher by a runner that the test plays."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Iterator
from typing import Any, Optional

import grpc
import pytest
import treadle
from fake_fabric import FakeFabric, Fault


class Runner:
    """What a runner has in sys.modules."""

    def __init__(self) -> None:
        self.task: Optional[dict[str, Any]] = {"id": "t", "parent": "p"}
        self.told: list[Any] = []
        self.asked = 0

    def current(self) -> Optional[dict[str, Any]]:
        return self.task

    def api(self) -> Any:
        """The next answer; the last one for ever."""
        self.asked += 1
        told = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        if isinstance(told, Exception):
            raise told
        return told


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    made = Runner()
    hook = types.ModuleType("_treadle_task")
    hook.current, hook.api = made.current, made.api  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "_treadle_task", hook)
    return made


@pytest.fixture
def other() -> Iterator[FakeFabric]:
    fake = FakeFabric()  # type: ignore[abstract]
    fake.start()
    yield fake
    fake.stop()


def at(fabric: FakeFabric, token: str = "tdt_x") -> dict[str, Any]:
    return {"address": fabric.address, "token": token}


def test_a_task_needs_no_address(fabric: FakeFabric, runner: Runner) -> None:
    runner.told = [at(fabric)]
    with treadle.Client(timeout=10) as client:
        assert client.address == fabric.address
        assert client.submit(abs, -3).result(20) == 3
        assert client.options(priority=9).submit(abs, -4).result(20) == 4
    assert dict(fabric.metadata)["authorization"] == "Bearer tdt_x"


def test_who_names_a_server_gets_it(
    fabric: FakeFabric, other: FakeFabric, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.told = [RuntimeError("nobody may ask")]
    for choices in ({"address": fabric.address}, {"token": "tdl_y"}, {"tls": False}, {"ca": "system"}):
        with treadle.Client(**choices) as client:
            assert client.address == choices.get("address", "127.0.0.1:50051")
    monkeypatch.setenv("TREADLE_ADDRESS", other.address)
    with treadle.Client() as client:
        assert client.address == other.address
    assert runner.asked == 0


def test_outside_of_a_task_it_is_an_ordinary_client(runner: Runner) -> None:
    runner.task, runner.told = None, [RuntimeError("no task runs")]
    with treadle.Client() as client:
        assert client.address == "127.0.0.1:50051"


def test_a_worker_that_cannot_tell_is_quoted(runner: Runner) -> None:
    runner.told = [RuntimeError("the dispatcher of this worker is of an earlier release")]
    with pytest.raises(treadle.Unavailable, match="cannot submit others: the dispatcher .* earlier release"):
        treadle.Client()


def test_it_goes_to_the_next_dispatcher(fabric: FakeFabric, other: FakeFabric, runner: Runner) -> None:
    """Calls under way, results that are waited for, and later calls."""
    runner.told = [at(fabric)]
    fabric.auto = False
    with treadle.Client(timeout=20) as client:
        first = client.submit(abs, -3)
        assert first.task_id
        # gRPC's server in Python never answers a stream that it has accepted and not begun when it stops.
        with fabric.changed:
            assert fabric.changed.wait_for(lambda: fabric.open_streams == 1, 20)
        # The store is the same behind both.
        other.functions, other.runtimes = fabric.functions, fabric.runtimes
        other.requests, other.results, other.by_request = fabric.requests, fabric.results, fabric.by_request
        runner.told = [at(fabric), at(other, "tdt_z")]
        fabric.stop()
        assert client.submit(abs, -5).result(20) == 5
        assert client.address == other.address
        other.finish(first.task_id, 3)
        assert first.result(20) == 3
    assert dict(other.metadata)["authorization"] == "Bearer tdt_z"


def test_a_dispatcher_that_has_just_started_is_given_time(fabric: FakeFabric, runner: Runner) -> None:
    runner.told = [at(fabric, "tdt_old"), at(fabric, "tdt_old"), at(fabric, "tdt_new")]
    fabric.faults["GetTask"] = [Fault(grpc.StatusCode.UNAUTHENTICATED, "was not made here")] * 2
    fabric.auto = False
    with treadle.Client(timeout=20) as client:
        task_id = client.submit(abs, 1).task_id
        runner.told = [at(fabric, "tdt_new")]
        assert client.task(task_id).task_id == task_id
        assert dict(fabric.metadata)["authorization"] == "Bearer tdt_new"


def test_a_token_that_has_ended_is_told_of(fabric: FakeFabric, runner: Runner) -> None:
    runner.told = [at(fabric)]
    with treadle.Client(timeout=20) as client:
        fabric.faults["GetTask"] = [Fault(grpc.StatusCode.UNAUTHENTICATED, "ended with its attempt")] * 1000
        began = time.monotonic()
        with pytest.raises(treadle.Unauthenticated, match="ended with its attempt"):
            client.task("0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11")
        assert time.monotonic() - began < 15


def test_an_ordinary_client_is_told_at_once(fabric: FakeFabric) -> None:
    with treadle.Client(fabric.address, timeout=20) as client:
        fabric.faults["GetTask"] = [Fault(grpc.StatusCode.UNAUTHENTICATED, "revoked")]
        with pytest.raises(treadle.Unauthenticated, match="revoked"):
            client.task("0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11")
