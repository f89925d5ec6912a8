"""Submissions of many threads travel together."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Any, Callable

from . import _status
from ._await import copied
from ._gen.treadle.v1 import fabric_pb2 as pb
from ._results import Outcome
from .errors import ClientClosed, NotFound, TreadleError
from .future import TaskFuture, mark_recorded

log = logging.getLogger("treadle")

# Keeps one batch from delaying its first item for its last. The server's limit is 10,000.
_MAX_ITEMS = 1000
# Well below the message limit; one request alone may be larger.
_MAX_BYTES = 32 << 20
# What may be queued before submit waits: a producer that is faster than the server
# must not fill the memory.
_MAX_QUEUED_ITEMS = 20_000
_MAX_QUEUED_BYTES = 256 << 20


class Call:
    """A task to be recorded, and what is left to do before it can be."""

    __slots__ = ("extra", "fill", "label", "renew", "request")

    def __init__(
        self,
        request: pb.ExecuteRequest,
        label: str,
        fill: Callable[[], None] | None = None,
        renew: Callable[[], None] | None = None,
        extra: int = 0,
    ) -> None:
        """label is the function's name for people. fill completes the request and may ask the server;
        renew does so when the server turned out not to know the function. Both raise TreadleError.
        extra is how many bytes they hold."""
        self.request = request
        self.label = label
        self.fill = fill
        self.renew = renew
        self.extra = extra

    def complete(self) -> None:
        """Do what is left to do."""
        if self.fill is not None:
            self.fill()
            self.fill = None


class _Item:
    __slots__ = ("call", "future", "size")

    def __init__(self, call: Call, future: TaskFuture[Any]) -> None:
        self.call = call
        self.size = call.request.ByteSize() + call.extra
        self.future = future


class Submitter:
    """One thread that sends what has queued up, in one ExecuteBatch after the other.

    While one batch is under way the next one fills, so that a lone submit leaves at
    once and a thousand travel in two or three. No timer is involved.
    """

    def __init__(
        self,
        send: Callable[[pb.ExecuteBatchRequest, int], pb.ExecuteBatchResponse],
        landed: Callable[[list[TaskFuture[Any]]], None],
        unknown: Callable[[str], None],
    ) -> None:
        """send makes the call (its second argument is the size); landed takes the futures of what
        was recorded; unknown is told of functions that the server does not know."""
        self._send = send
        self._landed = landed
        self._unknown = unknown
        # Guards everything below.
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._queued_bytes = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, call: Call, future: TaskFuture[Any]) -> None:
        """Queue a call; waits while too much is queued."""
        item = _Item(call, future)
        with self._changed:
            # The sender itself gets here from the callback of a future that it failed.
            while self._is_full() and not self._closed and threading.current_thread() is not self._thread:
                self._changed.wait()
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="treadle-submit", daemon=True)
                thread.start()
                self._thread = thread
            self._queue.append(item)
            self._queued_bytes += item.size
            self._changed.notify_all()

    def _is_full(self) -> bool:
        return len(self._queue) >= _MAX_QUEUED_ITEMS or self._queued_bytes >= _MAX_QUEUED_BYTES

    def withdraw(self, future: TaskFuture[Any]) -> bool:
        """Take a request back that has not left yet; says whether that was so."""
        with self._changed:
            # From the newest on: those are the ones that people take back.
            for index in range(len(self._queue) - 1, -1, -1):
                if self._queue[index].future is future:
                    self._queued_bytes -= self._queue[index].size
                    del self._queue[index]
                    self._changed.notify_all()
                    return True
        return False

    def close(self, timeout: float) -> None:
        """Refuse new requests and send what is queued, for at most timeout seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def fail(self) -> None:
        """Give up what is still queued, after close."""
        with self._changed:
            left = list(self._queue)
            self._queue.clear()
            self._queued_bytes = 0
        for item in left:
            item.future._settle(Outcome(error=ClientClosed("the client was closed before the task was sent")))

    def _run(self) -> None:
        # A frame that waits for the next batch must not hold the last one: futures, results and all.
        while self._send_next():
            pass

    def _send_next(self) -> bool:
        """Send one batch; says whether there was one to wait for."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return False
                self._changed.wait()
            batch = self._take()
            self._changed.notify_all()
        try:
            self._fly(batch)
        except BaseException as exc:  # a fault of this package must not leave futures waiting for ever
            log.exception("sending tasks failed")
            for item in batch:
                if item.future._task_id is None:
                    item.future._settle(Outcome(error=TreadleError(f"Execute: {type(exc).__name__}")))
        return True

    def _take(self) -> list[_Item]:
        batch: list[_Item] = []
        size = 0
        while self._queue and len(batch) < _MAX_ITEMS:
            if batch and size + self._queue[0].size > _MAX_BYTES:
                break
            item = self._queue.popleft()
            size += item.size
            batch.append(item)
        self._queued_bytes -= size
        return batch

    def _fly(self, batch: list[_Item]) -> None:
        batch = self._completed(batch)
        if not batch:
            return
        request = pb.ExecuteBatchRequest(requests=[item.call.request for item in batch])
        try:
            answers = self._send(request, sum(item.size for item in batch)).items
            if len(answers) != len(batch):
                raise TreadleError(f"Execute: {len(answers)} answers to {len(batch)} requests")
        except Exception as exc:  # whatever it is, every one of these futures has to hear of it
            for item in batch:
                item.future._settle(Outcome(error=copied(exc)))
            return
        recorded: list[tuple[TaskFuture[Any], str]] = []
        refused: list[tuple[_Item, pb.ItemError]] = []
        for item, answer in zip(batch, answers):
            if answer.HasField("error"):
                refused.append((item, answer.error))
            else:
                recorded.append((item.future, answer.task_id))
        mark_recorded(recorded)
        # Waiting starts before anything is announced: a callback may take its time.
        if recorded:
            self._landed([future for future, _ in recorded])
        again: list[_Item] = []
        for item, error in refused:
            refusal = _status.from_item("Execute", error.code, error.reason, error.message)
            if isinstance(refusal, NotFound):
                self._unknown(item.call.request.function)
                if item.call.renew is not None:
                    # It was registered from here, and the server has forgotten it since.
                    item.call.fill, item.call.renew = item.call.renew, None
                    again.append(item)
                    continue
            item.future._settle(Outcome(error=refusal))
        if again:
            self._fly(again)

    def _completed(self, batch: list[_Item]) -> list[_Item]:
        """Those of a batch that can be sent; the others have failed."""
        ready = []
        for item in batch:
            try:
                item.call.complete()
            except BaseException as exc:
                item.future._settle(Outcome(error=exc if isinstance(exc, Exception) else TreadleError(repr(exc))))
                continue
            item.future.function = item.call.request.function
            ready.append(item)
        return ready
