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
    assert [backend.effective_n_jobs(n) for n in (None, 3, -1, -2, -9)] == [4, 3, 4, 3, 2]
    with pytest.raises(ValueError):
        backend.effective_n_jobs(0)


def test_a_grid_search(client: treadle.Client) -> None:
    """scikit-learn finds the same as it does in one process, and its fits were tasks."""
    numpy = pytest.importorskip("numpy", reason="NOT TRIED: numpy is not installed")
    pytest.importorskip("sklearn", reason="NOT TRIED: scikit-learn is not installed")
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = make_classification(n_samples=200, n_features=8, random_state=1)

    def search(n_jobs: int) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        grid = {"logisticregression__C": [0.01, 0.1, 1.0, 10.0], "logisticregression__tol": [1e-4, 1e-2]}
        return GridSearchCV(model, grid, cv=3, n_jobs=n_jobs).fit(x, y)

    before = sum(1 for _ in client.tasks())
    found = search(-1)
    assert sum(1 for _ in client.tasks()) > before, "it ran elsewhere"
    with joblib.parallel_config(backend="sequential"):
        alone = search(1)
    assert found.best_params_ == alone.best_params_
    for key in ("mean_test_score", "std_test_score", "rank_test_score"):
        assert numpy.array_equal(found.cv_results_[key], alone.cv_results_[key]), key
    assert numpy.array_equal(found.predict(x), alone.predict(x))
