"""Treadle behind the interface of concurrent.futures."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, cast

from . import _mapping
from ._typing import ParamSpec
from .client import Client
from .future import TaskFuture

if TYPE_CHECKING:
    from ._submit import Call
    from ._target import Target

T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger("treadle")

# Whoever sets none gets as many tasks under way as Client.map has.
_MAX_WORKERS = 1000


class Executor(concurrent.futures.Executor):
    """A concurrent.futures.Executor whose calls run on Treadle's workers.

    with treadle.Executor(max_workers=100) as pool: ...

    Its end waits for its futures, as that of a ThreadPoolExecutor does, and so does the end of the
    interpreter. Futures are TaskFutures: running() is always False, and cancel() also ends a task that
    runs. Any number of threads may use it.
    """

    def __init__(
        self,
        max_workers: Optional[int] = None,
        *,
        client: Optional[Client] = None,
        initializer: Optional[Callable[..., object]] = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        """max_workers: how many tasks are under way at once, 1,000 by default; others wait in this process.
        How many run is up to the workers.

        client: whose tasks they are; client.options(...) gives them options. It stays open. Without one
        the executor makes a Client(), which ends with it.

        initializer is refused with ValueError: a worker's processes are not this executor's.
        """
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None or initargs:
            raise ValueError(
                "initializer: the workers' processes are not this executor's, and run tasks of others too; "
                "call it in the function itself, for example behind functools.cache"
            )
        self._max_workers = max_workers or _MAX_WORKERS
        self._client = client if client is not None else Client()
        self._owns_client = client is None
        # Guards everything below. Reentrant, as the end of a future may come inside of a submit.
        self._changed = threading.Condition(threading.RLock())
        self._held: deque[tuple[Call, TaskFuture[Any]]] = deque()
        self._sent: set[TaskFuture[Any]] = set()
        # Futures that are done and whose callbacks run, and the threads that they run on.
        self._calling: dict[TaskFuture[Any], int] = {}
        self._is_shut = False
        _executors.add(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Execute a function on a worker; see Client.submit. RuntimeError after shutdown."""
        self._check()
        return self._launch(self._client._target(fn), args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: Optional[float] = None,
        chunksize: int = 1,
        buffersize: Optional[int] = None,
    ) -> Iterator[T]:
        """Results in order. All calls are submitted at once, or at most buffersize of them before results are taken.

        chunksize calls make one task. timeout counts from now, in seconds.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        self._check()
        end = None if timeout is None else time.monotonic() + timeout
        calls: Iterator[tuple[Any, ...]] = zip(*iterables)
        if chunksize == 1:
            target = self._client._target(fn)
            waiting = iter(calls)
        else:
            target, function = self._client._chunk_target(fn)
            waiting = ((function, chunk) for chunk in _mapping.chunks(calls, chunksize))
        window: deque[TaskFuture[Any]] = deque()

        def refill(size: Optional[int]) -> None:
            for args in islice(waiting, size):
                window.append(self._launch(target, args, {}))

        def take() -> Any:
            value = window[0].result(None if end is None else max(end - time.monotonic(), 0.0))
            window.popleft()
            if buffersize is not None:
                refill(1)
            return value

        def results() -> Iterator[Any]:
            try:
                while window:
                    yield take()
            finally:
                for future in window:
                    self._abandon(future, False)

        try:
            refill(buffersize)
        except BaseException:
            for future in window:
                self._abandon(future, False)
            raise
        return results() if chunksize == 1 else _mapping.flat(results())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. With wait, return when all futures are done and their callbacks have run.

        cancel_futures cancels what has not started; what runs on a worker goes on.
        """
        with self._changed:
            self._is_shut = True
            held = [future for _, future in self._held] if cancel_futures else []
            sent = list(self._sent) if cancel_futures else []
        for future in (*held, *sent):
            self._abandon(future, True)
        with self._changed:
            # In a callback itself nobody's callbacks can be waited for.
            own = threading.get_ident() in self._calling.values()
            while wait and (self._held or self._sent or (self._calling and not own)):
                self._changed.wait()
            done = not self._held and not self._sent
        if done and self._owns_client:
            self._client.close()

    def _check(self) -> None:
        if _exiting.is_set():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _launch(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskFuture[Any]:
        call = self._client._call(target, args, kwargs)
        future = self._client._backend.prepare(call)
        with self._changed:
            self._check()
            free = len(self._sent) < self._max_workers
            if free:
                self._sent.add(future)
            else:
                future._hold = self._withdraw
                self._held.append((call, future))
        future._called = self._called
        future.add_done_callback(self._ended)
        if free:
            self._send(call, future)
        return future

    def _send(self, call: Call, future: TaskFuture[Any]) -> None:
        try:
            self._client._backend.send(call, future)
        except BaseException as exc:
            with self._changed:
                self._sent.discard(future)
                self._changed.notify_all()
            future._fail(exc)

    def _withdraw(self, future: TaskFuture[Any]) -> bool:
        """Take a call back that has not been sent; says whether that was so."""
        with self._changed:
            for index, (_, held) in enumerate(self._held):
                if held is future:
                    del self._held[index]
                    self._changed.notify_all()
                    return True
        return False

    def _abandon(self, future: TaskFuture[Any], only_queued: bool) -> None:
        """Cancel a future without waiting."""
        if future.done():
            return
        if self._withdraw(future) or self._client._backend.withdraw(future):
            future._mark_cancelled()
        else:
            self._client._backend.cancel_later(future, only_queued)

    def _ended(self, future: concurrent.futures.Future[Any]) -> None:
        with self._changed:
            # The first of its callbacks is this one.
            self._calling[cast("TaskFuture[Any]", future)] = threading.get_ident()
            self._sent.discard(cast("TaskFuture[Any]", future))
            following = []
            while self._held and len(self._sent) < self._max_workers:
                call, held = self._held.popleft()
                held._hold = None
                self._sent.add(held)
                following.append((call, held))
            self._changed.notify_all()
            over = self._is_shut and not self._held and not self._sent and self._owns_client
        for call, held in following:
            self._send(call, held)
        if over:
            # Of a shutdown that does not wait. This is a thread of the client, which it would wait for.
            close = threading.Thread(target=self._client.close, name="treadle-close", daemon=True)
            try:
                close.start()
            except RuntimeError:  # the interpreter ends, and closes it
                log.debug("no thread can start; the client is closed at the end")

    def _called(self, future: TaskFuture[Any]) -> None:
        with self._changed:
            # Others may find it settled while its callbacks still run.
            if self._calling.get(future) == threading.get_ident():
                del self._calling[future]
                self._changed.notify_all()


# Executors that the end of the interpreter waits for.
_executors: weakref.WeakSet[Executor] = weakref.WeakSet()
_exiting = threading.Event()


def _wait_for_all() -> None:
    _exiting.set()
    for executor in list(_executors):
        executor.shutdown(wait=True)


# Before the interpreter stops threads from starting, which results need; it is where concurrent.futures
# waits for its own. Later, at atexit, the connection could only send what is queued.
_register: Callable[..., object] = vars(threading)["_register_atexit"]
_register(functools.partial(_wait_for_all))
