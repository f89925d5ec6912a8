"""Map: many calls, results in order, a bounded number under way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Callable, Optional

from .future import TaskFuture

if TYPE_CHECKING:
    from ._backend import Backend

# Runs on the worker, where this package need not be. The function travels with the calls.
CHUNK_SOURCE = "def run(fn, calls):\n    return [fn(*args) for args in calls]\n"


def ordered(
    backend: Backend,
    submit: Callable[[tuple[Any, ...]], TaskFuture[Any]],
    calls: Iterable[tuple[Any, ...]],
    buffersize: int,
    timeout: Optional[float],
) -> Iterator[Any]:
    """Submit the first buffersize calls now, each other one when a result was taken."""
    end = None if timeout is None else time.monotonic() + timeout
    waiting = iter(calls)
    window: deque[TaskFuture[Any]] = deque()

    def refill(size: int) -> None:
        for args in islice(waiting, size):
            window.append(submit(args))

    def take() -> Any:
        value = window[0].result(None if end is None else max(end - time.monotonic(), 0.0))
        window.popleft()
        refill(1)
        return value

    def results() -> Iterator[Any]:
        try:
            while window:
                yield take()  # no name for it: what the caller drops is gone
        finally:
            # An exception, or the caller has had enough.
            backend.cancel_all(window)

    try:
        refill(buffersize)
    except BaseException:
        backend.cancel_all(window)
        raise
    return results()


def flat(lists: Iterator[list[Any]]) -> Iterator[Any]:
    """The values of all lists, none of which is kept once it was taken."""
    try:
        for values in lists:
            values.reverse()
            while values:
                yield values.pop()
    finally:
        close: Callable[[], None] = getattr(lists, "close", lambda: None)
        close()


def chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    """The calls in lists of at most that size."""
    while chunk := list(islice(calls, size)):
        yield chunk
