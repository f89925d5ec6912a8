"""Results of many tasks come by few streams."""

from __future__ import annotations

import copy
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Callable

import grpc

from . import _status
from ._gen.treadle.v1 import fabric_pb2 as pb
from ._results import Loader, Outcome, finished, outcome
from .errors import ClientClosed, NotFound, TreadleError, Unavailable
from .future import TaskFuture

log = logging.getLogger("treadle")

# How many streams are open at once, as long as the server's limit of ids per stream
# allows so few.
_MAX_STREAMS = 8
# The server's limit of ids per stream.
_MAX_IDS = 10_000

# A stream that lasted this long, in seconds, had a server at its other end: without one it ends sooner,
# after a failed connection or a missed ping.
_LIVED = 40.0

# Opens one AwaitResults stream.
OpenStream = Callable[[pb.AwaitResultsRequest], Any]


def backoff() -> Iterator[float]:
    """Pauses between attempts, in seconds: from 50 ms, growing to 1 s, spread out."""
    pause = 0.05
    while True:
        yield pause * random.uniform(0.7, 1.3)
        pause = min(pause * 1.6, 1.0)


class _Group:
    """The futures that one stream waits for."""

    __slots__ = ("call", "futures", "retired")

    def __init__(self, futures: dict[str, list[TaskFuture[Any]]]) -> None:
        # Guarded by the awaiter's lock, as everything here.
        self.futures = futures
        self.call: Any = None
        # Its futures have gone to another group.
        self.retired = False


class Awaiter:
    """Delivers results to futures.

    What was recorded together is awaited together. The ids of a stream are fixed when it
    opens, so new ones get a stream of their own, and when there are too many streams the
    two smallest become one: an id is sent again a few times, not once per newcomer.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        get_task: Callable[[str], object],
        load: Loader,
        patience: float,
        passes: Callable[[TreadleError], bool],
    ) -> None:
        """get_task raises NotFound for an unknown id; patience is how long, in seconds, streams are
        opened again after errors that may pass, as when no server answers."""
        self._passes = passes
        self._open = open_stream
        self._get_task = get_task
        self._load = load
        self._patience = patience
        self._closed = threading.Event()
        # Guards everything below, and all groups.
        self._changed = threading.Condition()
        self._groups: set[_Group] = set()
        self._ready: deque[_Group] = deque()
        self._idle = 0
        self._threads: set[threading.Thread] = set()

    def add(self, futures: Iterable[TaskFuture[Any]]) -> None:
        """Wait for the results of futures whose tasks are recorded."""
        by_id: dict[str, list[TaskFuture[Any]]] = {}
        for future in futures:
            by_id.setdefault(future.task_id, []).append(future)
        group = _Group(by_id)
        refused: TreadleError | None = None
        with self._changed:
            if self._closed.is_set():
                refused = ClientClosed("the client is closed; the task goes on")
            else:
                try:
                    self._start(group)
                except RuntimeError as exc:  # no more threads, or the interpreter ends
                    refused = TreadleError(f"nothing can wait for the result: {exc}")
                else:
                    self._merge()
        if refused is not None:
            _fail(by_id, refused)

    def close(self) -> None:
        """End the streams; futures that are still waiting fail with ClientClosed."""
        with self._changed:
            self._closed.set()
            left = [group.futures for group in self._groups]
            for group in list(self._groups):
                group.futures = {}
                self._retire(group)
            threads = list(self._threads)
            self._changed.notify_all()
        for futures in left:
            _fail(futures, ClientClosed("the client was closed while waiting; the task goes on"))
        for thread in threads:
            if thread is not threading.current_thread():
                # A callback of the user may keep it; daemons hold up nothing.
                thread.join(1.0)

    # Under the lock.

    def _start(self, group: _Group) -> None:
        """Have a thread serve the group; RuntimeError when there is none to be had."""
        if self._idle <= len(self._ready):
            thread = threading.Thread(target=self._run, name="treadle-await", daemon=True)
            thread.start()
            self._threads.add(thread)
        else:
            self._changed.notify()
        self._groups.add(group)
        self._ready.append(group)

    def _retire(self, group: _Group) -> None:
        group.retired = True
        self._groups.discard(group)
        if group.call is not None:
            group.call.cancel()

    def _merge(self) -> None:
        while len(self._groups) > _MAX_STREAMS:
            small, next_small = sorted(self._groups, key=lambda group: len(group.futures))[:2]
            if len(small.futures) + len(next_small.futures) > _MAX_IDS:
                return
            together = {id: list(futures) for id, futures in small.futures.items()}
            for id, futures in next_small.futures.items():
                together.setdefault(id, []).extend(futures)
            try:
                self._start(_Group(together))
            except RuntimeError:
                return  # then they stay apart
            for group in (small, next_small):
                group.futures = {}
                self._retire(group)

    # On the threads.

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._ready and not self._closed.is_set():
                    if self._idle > _MAX_STREAMS:
                        break
                    self._changed.wait()
                self._idle -= 1
                if not self._ready:
                    self._threads.discard(threading.current_thread())
                    return
                group = self._ready.popleft()
            try:
                self._serve(group)
            except BaseException as exc:  # a fault of this package must not leave futures waiting for ever
                log.exception("waiting for results failed")
                self._give_up(group, TreadleError(f"AwaitResults: {type(exc).__name__}"))
            del group  # while the thread waits for the next one

    def _serve(self, group: _Group) -> None:
        """Keep a stream open until every future of the group is settled."""
        pauses = backoff()
        # The first failure of a time without a server; not the start of the stream, which is silent for as
        # long as its tasks run.
        since: float | None = None
        while True:
            with self._changed:
                if group.retired or not group.futures:
                    self._groups.discard(group)
                    return
                ids = list(group.futures)
            begun = time.monotonic()
            progress, exc = self._listen(group, ids)
            now = time.monotonic()
            if progress or now - begun > _LIVED:
                pauses, since = backoff(), None
            if exc is None or self._is_retired(group):
                continue
            since = now if since is None else since
            if isinstance(exc, NotFound):
                if self._sift(group, ids):
                    continue
            elif not self._passes(exc) or now - since > self._patience:
                self._give_up(group, exc)
                return
            log.info("waiting for results again: %s", exc)
            self._closed.wait(next(pauses))

    def _listen(self, group: _Group, ids: list[str]) -> tuple[bool, TreadleError | None]:
        """Read one stream to its end; says whether anything came, and the error that ended it."""
        progress = False
        try:
            call = self._open(pb.AwaitResultsRequest(task_ids=ids))
            with self._changed:
                if group.retired:
                    call.cancel()
                else:
                    group.call = call
            for message in call:
                progress = True
                self._deliver(group, message.results)
                del message  # the bytes of its results, while the thread waits for the next one
        except grpc.RpcError as err:
            return progress, _status.from_rpc("AwaitResults", err)
        except TreadleError as exc:
            return progress, exc
        except RuntimeError as err:  # gRPC starts a thread for a stream; at the interpreter's end none starts
            return progress, TreadleError(f"AwaitResults: {err}")
        finally:
            with self._changed:
                group.call = None
        with self._changed:
            if group.futures and not progress:
                return False, Unavailable("AwaitResults: the stream ended without results")
        return progress, None

    def _deliver(self, group: _Group, results: Iterable[pb.TaskResult]) -> None:
        for result in results:
            if not finished(result):
                continue
            with self._changed:
                futures = group.futures.pop(result.task_id, None)
            # None: the group was merged into another, whose stream brings the result again.
            for future in futures or ():
                # Each its own: futures of one task may be in hands that know nothing of each other.
                future._settle(outcome(result, self._load))

    def _sift(self, group: _Group, ids: list[str]) -> bool:
        """Fail the futures of tasks that the server does not know, so that they do not take the
        others with them; says whether there were any."""
        found = False
        for id in ids:
            try:
                self._get_task(id)
            except NotFound as exc:
                found = True
                with self._changed:
                    futures = group.futures.pop(id, [])
                for future in futures:
                    future._settle(Outcome(error=exc))
            except TreadleError:
                return found
        return found

    def _is_retired(self, group: _Group) -> bool:
        with self._changed:
            return group.retired

    def _give_up(self, group: _Group, exc: TreadleError) -> None:
        with self._changed:
            futures, group.futures = group.futures, {}
            self._groups.discard(group)
        _fail(futures, exc)


def _fail(futures: dict[str, list[TaskFuture[Any]]], exc: TreadleError) -> None:
    for waiting in futures.values():
        for future in waiting:
            # Each its own: raising an exception writes to it.
            future._settle(Outcome(error=copied(exc)))


def copied(exc: Exception) -> Exception:
    """A copy of an exception, or the exception where it cannot be copied."""
    try:
        return copy.copy(exc)
    except Exception:
        return exc
