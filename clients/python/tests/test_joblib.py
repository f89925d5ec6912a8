"""joblib's Parallel over Treadle."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import pytest
import treadle
from test_binary import BINARY, Up, until

joblib = pytest.importorskip("joblib", reason="NOT TRIED: joblib is not installed")

pytestmark = [
    pytest.mark.binary,
    pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built (go build -o bin/treadle ./cmd/treadle)"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[treadle.Client]:
    from treadle import joblib as backend

    backend.register()
    up = Up(tmp_path_factory.mktemp("joblib"))
    up.start()
    with treadle.Client(up.address) as c:
        until(lambda: sum(worker.slots for worker in c.workers()) == 4)
    with treadle.Client(up.address) as c, joblib.parallel_config(backend="treadle", client=c):
        yield c
    up.end()


def test_results_in_order(client: treadle.Client) -> None:
    factor = 3
    found = joblib.Parallel(n_jobs=-1)(joblib.delayed(lambda n: n * factor)(n) for n in range(500))
    assert found == [3 * n for n in range(500)]
    assert list(client.tasks(limit=1))[0].function_name == "methodcaller"
    assert len([f for f in client.functions() if f.name == "methodcaller"]) == 1, "batches are arguments"


def test_generators_and_errors(client: treadle.Client) -> None:
    parallel: Any = joblib.Parallel(n_jobs=2, return_as="generator")
    assert list(parallel(joblib.delayed(operator.neg)(n) for n in range(20))) == [-n for n in range(20)]
    with pytest.raises(ZeroDivisionError):
        joblib.Parallel(n_jobs=2)(joblib.delayed(divmod)(1, n) for n in (1, 0, 1))


def test_jobs(client: treadle.Client) -> None:
    from treadle.joblib import TreadleBackend

    backend = TreadleBackend(client=client)
    assert [backend.effective_n_jobs(n) for n in (None, 3, -1, -2, -9)] == [1, 3, 4, 3, 2]
    with pytest.raises(ValueError):
        backend.effective_n_jobs(0)
