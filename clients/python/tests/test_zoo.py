"""Nothing that a value or an exception does leaves a future open or touches another one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import gc
import operator
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import treadle
from fake_fabric import FakeFabric
from treadle import _results
from treadle._gen.treadle.v1 import fabric_pb2 as pb

# One of the animals raises in __del__, which Python reports and ignores.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def quit_now(*_: object) -> NoReturn:
    raise SystemExit(7)


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class FrozenField(Exception):  # unpickling sets what it may not
    text: str = "cold"


class NoAttributes(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise SystemExit(name)


class NoCause(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise SystemExit("cause")


class Empty(Exception):
    def __len__(self) -> int:
        return 0


class Untrue(Exception):
    def __bool__(self) -> bool:
        return False


class TruthQuits(Exception):
    def __bool__(self) -> bool:
        raise SystemExit("bool")


class EqualsNothing(Exception):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise SystemExit("eq")


class Speechless(Exception):
    def __str__(self) -> str:
        raise SystemExit("str")

    __repr__ = __str__


class Impostor(Exception):
    @property
    def __class__(self) -> Any:
        raise SystemExit("class")


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name == "__qualname__":
            raise SystemExit(name)
        return super().__getattribute__(name)


class WithoutName(Exception, metaclass=Nameless):
    def __reduce__(self) -> Any:
        return make_without_name, ()


def make_without_name() -> WithoutName:
    return WithoutName()


class QuitsWhenRead(Exception):
    def __reduce__(self) -> Any:
        return quit_now, ()


class InterruptsWhenRead(Exception):
    def __reduce__(self) -> Any:
        return interrupt, ()


class DiesLoudly(Exception):
    loud = False

    def __del__(self) -> None:
        if self.loud:
            raise SystemExit("del")


@pytest.fixture(scope="module", autouse=True)
def loud() -> Iterator[None]:
    """Python reports what __del__ raises. What dies after these tests dies in silence."""
    DiesLoudly.loud = True
    yield
    DiesLoudly.loud = False


# The class, and whether the very exception can be had.
EXCEPTIONS = [
    (Frozen, True),
    (FrozenField, False),
    (NoAttributes, True),
    (NoCause, True),
    (Empty, True),
    (Untrue, True),
    (TruthQuits, True),
    (EqualsNothing, True),
    (Speechless, True),
    (Impostor, True),
    (WithoutName, True),
    (QuitsWhenRead, False),
    (InterruptsWhenRead, False),
    (DiesLoudly, True),
    (StopIteration, True),
    (StopAsyncIteration, True),
    (concurrent.futures.CancelledError, True),
    (concurrent.futures.TimeoutError, True),
    (concurrent.futures.InvalidStateError, True),
]


class ReadQuits:
    def __reduce__(self) -> Any:
        return quit_now, ()


class ReadInterrupts:
    def __reduce__(self) -> Any:
        return interrupt, ()


class StateQuits:
    def __getstate__(self) -> object:
        return {"a": 1}

    def __setstate__(self, state: object) -> NoReturn:
        raise SystemExit("state")


class MissingModule:
    def __reduce__(self) -> Any:
        return strange_import_error, ()


def strange_import_error() -> NoReturn:
    raise ModuleNotFoundError("no name", name=QuitsWhenAsked())  # type: ignore[arg-type]


class QuitsWhenAsked:
    def __getattr__(self, name: str) -> NoReturn:
        raise SystemExit(name)

    def __bool__(self) -> NoReturn:
        raise SystemExit("bool")


class Uncomparable:
    def __eq__(self, other: object) -> NoReturn:
        raise SystemExit("eq")

    __lt__ = __gt__ = __bool__ = __len__ = __hash__ = __str__ = __repr__ = quit_now  # type: ignore[assignment]


VALUES = [
    (ReadQuits, False),
    (ReadInterrupts, False),
    (StateQuits, False),
    (MissingModule, False),
    (Uncomparable, True),
]


def name_of(pair: tuple[type, bool]) -> str:
    return type.__dict__["__name__"].__get__(pair[0])  # type: ignore[no-any-return]


# Asked for by name: not every class can be sent.
ANIMALS = {name_of(pair): pair[0] for pair in [*EXCEPTIONS, *VALUES]}


def throw(item: Any) -> Any:
    """Raise an exception of that name, or echo what is none."""
    if item in ANIMALS:
        raise ANIMALS[item]()
    return item


def make(name: str) -> Any:
    return ANIMALS.get(name, str)()


def check(found: Any, cls: type, whole: bool) -> None:
    """What reached the caller: the very exception, or a word about it."""
    if whole:
        assert type(found) is cls
        return
    assert type(found) is treadle.TaskFailed
    assert isinstance(found.__cause__, treadle.RemoteTraceback)


@pytest.mark.parametrize("pair", EXCEPTIONS, ids=name_of)
@pytest.mark.parametrize("way", ["result", "timeout", "exception", "wrap_future", "await"])
def test_exceptions(fabric: FakeFabric, client: treadle.Client, pair: tuple[type, bool], way: str) -> None:
    if way == "wrap_future" and pair[0] is StopIteration and sys.version_info < (3, 12):
        pytest.skip("asyncio's own futures of this Python refuse it")
    gate = fabric.hold("AwaitResults")
    futures = [client.submit(throw, item) for item in (1, name_of(pair), 2)]
    gate.set()
    assert [futures[0].result(20), futures[2].result(20)] == [1, 2], "a neighbour"
    if way == "exception":
        check(futures[1].exception(20), *pair)
        return
    try:
        if way in ("wrap_future", "await"):
            # asyncio.run prints what its coroutine returns or raises, which is more than some can take.
            seen: list[BaseException] = []

            async def wrapped() -> None:
                try:
                    await (futures[1] if way == "await" else asyncio.wrap_future(futures[1]))
                except BaseException as exc:
                    seen.append(exc)

            asyncio.run(wrapped())
            for exc in seen:
                raise exc
        else:
            futures[1].result(*([20] if way == "timeout" else []))
    except BaseException as exc:
        if way == "await" and pair[0] is StopIteration:
            assert isinstance(exc, RuntimeError), "a generator cannot raise it"
            return
        if way == "wrap_future" and pair[0] in (StopIteration, *_translated):
            return  # asyncio puts its own class in the place of these
        check(exc, *pair)
        # Not asked through the class, which may answer as it likes.
        cause = BaseException.__dict__["__cause__"].__get__(exc)
        assert isinstance(cause, treadle.RemoteTraceback), "the worker's traceback is its cause"
    else:
        pytest.fail("it returned")


_translated = (
    concurrent.futures.CancelledError,
    concurrent.futures.TimeoutError,
    concurrent.futures.InvalidStateError,
)


@pytest.mark.parametrize("pair", EXCEPTIONS, ids=name_of)
@pytest.mark.parametrize("chunksize", [1, 2])
def test_exceptions_in_map(client: treadle.Client, pair: tuple[type, bool], chunksize: int) -> None:
    results = client.map(throw, [1, 1, name_of(pair), 2, 3, 3], chunksize=chunksize, timeout=20)
    assert [next(results), next(results)] == [1, 1]
    try:
        next(results)
    except BaseException as exc:
        if pair[0] is StopIteration:
            assert isinstance(exc, RuntimeError), "a generator cannot raise it"
        else:
            check(exc, *pair)
    else:
        pytest.fail("it returned")


@pytest.mark.parametrize("pair", VALUES, ids=name_of)
def test_values(fabric: FakeFabric, client: treadle.Client, pair: tuple[type, bool]) -> None:
    gate = fabric.hold("AwaitResults")
    futures = [client.submit(make, item) for item in ("", name_of(pair), "")]
    gate.set()
    assert [futures[0].result(20), futures[2].result(20)] == ["", ""], "a neighbour"
    if pair[1]:
        assert type(futures[1].result(20)) is pair[0]
    else:
        with pytest.raises(treadle.UnpicklingError):
            futures[1].result(20)


def test_outcome_never_raises() -> None:
    def load(data: bytes) -> NoReturn:
        raise GeneratorExit

    for result in (
        pb.TaskResult(status=pb.Task.COMPLETED, result_pickle=b"x"),
        pb.TaskResult(
            status=pb.Task.FAILED,
            error=pb.TaskError(error_type="FunctionExecutionFailure", foreign_pickle=b"x", exception_type="E"),
        ),
    ):
        assert _results.outcome(result, load).error is not None


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_callbacks_that_raise(fabric: FakeFabric, client: treadle.Client, error: type[BaseException]) -> None:
    fabric.auto = False
    called: list[str] = []

    def bad(_: object) -> NoReturn:
        called.append("bad")
        raise error

    futures = [client.submit(operator.neg, n) for n in range(3)]
    futures[1].add_done_callback(bad)
    second = threading.Event()
    futures[1].add_done_callback(lambda _: second.set())
    for future in (futures[1], futures[0], futures[2]):
        fabric.finish(future.task_id, "done")
    assert [future.result(20) for future in futures] == ["done"] * 3
    assert second.wait(10) and called == ["bad"], "the next callback of the same future"
    fabric.auto = True
    assert client.submit(operator.neg, 4).result(20) == -4, "the client goes on"


def test_pickling_that_raises_anything(client: treadle.Client) -> None:
    for bad in (ReduceQuits(), [ReduceQuits()]):
        with pytest.raises(treadle.PicklingError, match="SystemExit"):
            client.submit(operator.neg, bad)
    assert client.submit(operator.neg, 1).result(20) == -1


class ReduceQuits:
    def __reduce__(self) -> NoReturn:
        raise SystemExit("reduce")


def test_two_futures_of_a_task_share_nothing(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False
    first = client.submit(operator.neg, 1)
    second = client.future(first.task_id)
    fabric.finish(first.task_id, [])
    first.result(20).append(1)  # type: ignore[attr-defined]
    assert second.result(20) == []


# What is kept alive.


class Thing:
    def __init__(self, n: int = 0) -> None:
        self.n = n


def echo(thing: Thing) -> Thing:
    return thing


def gone(ref: weakref.ref[Any]) -> bool:
    """Whether nothing but a cycle kept it; threads need a moment to leave their frames."""
    end = time.monotonic() + 20
    while ref() is not None and time.monotonic() < end:
        gc.collect()
        threading.Event().wait(0.01)
    return ref() is None


def test_a_future_is_freed_with_its_result(client: treadle.Client) -> None:
    future = client.submit(echo, Thing())
    value, kept = weakref.ref(future.result(20)), weakref.ref(future)
    del future
    assert gone(kept), "the future"
    assert gone(value), "the result"


def test_a_refused_future_is_freed(client: treadle.Client) -> None:
    future = client.options(priority=10).submit(echo, Thing())
    assert isinstance(future.exception(20), treadle.InvalidRequest)
    kept = weakref.ref(future)
    del future
    assert gone(kept)


def test_arguments_are_not_kept(client: treadle.Client) -> None:
    thing = Thing()
    kept = weakref.ref(thing)
    future = client.submit(echo, thing)
    del thing
    assert kept() is None, "they have left as bytes"
    future.result(20)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_keeps_nothing_that_it_yielded(client: treadle.Client, chunksize: int) -> None:
    # As in concurrent.futures' own test: each is gone before the next one is asked for.
    count = 0
    for thing in client.map(echo, (Thing(n) for n in range(7)), chunksize=chunksize):
        count += 1
        kept = weakref.ref(thing)
        del thing
        assert kept() is None or gone(kept)
    assert count == 7


def test_map_cancels_what_it_started_when_it_cannot_go_on(fabric: FakeFabric, client: treadle.Client) -> None:
    fabric.auto = False

    def items() -> Any:
        yield 1
        yield 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.map(operator.neg, items())
    assert len(fabric.cancelled) == len(fabric.requests)


def test_the_pickles_of_this_module_do_what_they_say() -> None:
    for cls, whole in [*EXCEPTIONS, *VALUES]:
        try:
            loaded = pickle.loads(pickle.dumps(cls()))
        except BaseException:
            assert not whole, cls
        else:
            assert whole and type(loaded) is cls, cls
