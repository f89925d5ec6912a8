"""LocalClient behaves as a client with a worker does."""

from __future__ import annotations

import concurrent.futures
import pickle
import sys
import threading

import pytest
import treadle
from treadle.testing import LocalClient


def greet(name: str, mark: str = "!") -> str:
    print("greeting", name)
    return f"hello {name}{mark}"


def test_executes() -> None:
    with LocalClient() as client:
        future = client.submit(greet, "you", mark="?")
        assert isinstance(future, concurrent.futures.Future) and future.done()
        assert future.result() == "hello you?"
        assert future.logs() == "greeting you\n"
        assert client.result(future.task_id) == "hello you?"
        assert client.task(future.task_id).status == "COMPLETED"
        assert client.submit("greet", "me").result() == "hello me!"
        assert list(client.map(greet, ["a", "b"])) == ["hello a!", "hello b!"]
        assert not future.cancel()
        assert len(list(client.tasks())) == 4
        assert [f.name for f in client.functions()] == ["greet"]


def test_source() -> None:
    client = LocalClient()
    assert client.register_source("twice", "def twice(x):\n    return 2 * x\n")(21) == 42
    assert client.register_source("any name", "def f(x):\n    return x\n")(1) == 1
    with pytest.raises(treadle.InvalidRequest):
        client.register_source("broken", "def broken(:")


def test_arguments_and_results_are_copies() -> None:
    client = LocalClient()
    seen: list[int] = []
    client.submit(list.append, seen, 1).result()
    assert seen == []
    with pytest.raises(treadle.SerializationError):
        client.submit(threading.Lock).result()
    with pytest.raises(treadle.PicklingError):
        client.submit(len, threading.Lock())


def test_failures() -> None:
    client = LocalClient()
    with pytest.raises(ValueError, match="invalid literal") as info:
        client.submit(int, "x").result()
    assert isinstance(info.value.__cause__, treadle.RemoteTraceback)
    with pytest.raises(treadle.TaskFailed, match="SystemExit: 3"):
        client.submit(sys.exit, 3).result()
    with pytest.raises(treadle.NotFound):
        client.submit("nobody")
    with pytest.raises(treadle.NotFound):
        client.status("nothing")


def test_words_on_the_next_attempt() -> None:
    def refuse(error: object) -> None:
        raise treadle.NoRetry(error)  # type: ignore[arg-type]

    def later(seconds: float) -> None:
        raise treadle.RetryAfter(seconds, OSError("busy"))

    client = LocalClient()
    with pytest.raises(ValueError, match="^bad$"):
        client.submit(refuse, ValueError("bad")).result()
    with pytest.raises(treadle.NoRetry, match="^no sense$"):
        client.submit(refuse, "no sense").result()
    with pytest.raises(OSError, match="^busy$"):
        client.submit(later, 1.5).result()
    for word in (treadle.NoRetry("no"), treadle.RetryAfter(2, ValueError("busy"))):
        loaded = pickle.loads(pickle.dumps(word))
        assert (type(loaded), str(loaded), loaded.__dict__.get("seconds")) == (
            type(word),
            str(word),
            word.__dict__.get("seconds"),
        )
        # Workers without this package have one module of that name, and none below it.
        assert b"_retry" not in pickle.dumps(word)
    for seconds, cut in ((-1.0, 0.001), (0.001, 0.001), (86400, 86400.0), (86400.5, 86400.0), (10**400, 86400.0)):
        assert treadle.RetryAfter(seconds).seconds == cut
    with pytest.raises(ValueError, match="NaN"):
        treadle.RetryAfter(float("nan"))
    with pytest.raises(TypeError, match="seconds is '1': want a number"):
        treadle.RetryAfter("1")  # type: ignore[arg-type]
