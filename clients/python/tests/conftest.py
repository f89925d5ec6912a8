from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import treadle
from fake_fabric import FakeFabric


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell of a failure at once: a later test that hangs would keep it from the summary."""
    if report.failed and sys.__stderr__ is not None:
        print(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}", file=sys.__stderr__, flush=True)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREADLE_ADDRESS", raising=False)
    monkeypatch.delenv("TREADLE_TOKEN", raising=False)
    monkeypatch.delenv("TREADLE_TLS_CA", raising=False)


@pytest.fixture
def fabric() -> Iterator[FakeFabric]:
    fake = FakeFabric()  # type: ignore[abstract]  # what it lacks answers UNIMPLEMENTED
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def client(fabric: FakeFabric) -> Iterator[treadle.Client]:
    with treadle.Client(fabric.address, timeout=10) as c:
        yield c
