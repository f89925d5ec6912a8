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
    window = deque(submit(args) for args in islice(waiting, buffersize))

    def results() -> Iterator[Any]:
        try:
            while window:
                value = window[0].result(None if end is None else max(end - time.monotonic(), 0.0))
                window.popleft()
                for args in islice(waiting, 1):
                    window.append(submit(args))
                yield value
        finally:
            # An exception, or the caller has had enough.
            backend.cancel_all(window)

    return results()


def chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    """The calls in lists of at most that size."""
    while chunk := list(islice(calls, size)):
        yield chunk
