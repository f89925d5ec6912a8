"""The future of a task."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar

from ._gen.treadle.v1 import fabric_pb2 as pb
from ._results import Outcome
from .errors import Cancelled, TreadleError

if TYPE_CHECKING:
    from ._backend import Backend
    from .records import Status

T = TypeVar("T")

log = logging.getLogger("treadle")

# Announces, of any future, that its task was recorded or never will be. One for all: few
# wait for it, and a condition of its own would be the most expensive part of a future.
# (The one that a Future has is not for others: result(timeout) takes any notice for the end.)
_recording = threading.Condition()


class TaskFuture(concurrent.futures.Future[T]):
    """The future of one task: a concurrent.futures.Future in every respect.

    wait, as_completed and asyncio.wrap_future take it, and it can be awaited. Callbacks run on a thread of the
    client; do not block in them. running() is always False, as by its meaning it would say
    that the call cannot be cancelled: status() asks the server.
    """

    def __init__(self, backend: Backend, function: str, name: str = "") -> None:
        super().__init__()
        self._backend = backend
        self._name = name
        # Set once, under _recording.
        self._task_id: Optional[str] = None
        # Set under it too: whether it is to be cancelled, and then whether only if it is queued.
        self._unwanted: Optional[bool] = None
        # Takes it back from an executor that has not sent it yet.
        self._hold: Optional[Callable[[TaskFuture[Any]], bool]] = None
        # Told, by whoever settles it, that its callbacks have run.
        self._called: Optional[Callable[[TaskFuture[Any]], object]] = None
        self._notified = False
        self.function = function
        """Id or name of the function. The name, until a callable's first submission has registered it."""

    def __repr__(self) -> str:
        # What the future came to is not asked: its class may do anything.
        state = "cancelled" if self.cancelled() else "finished" if self.done() else "pending"
        task = self._task_id or "not recorded yet" if state == "pending" else self._task_id or "not recorded"
        return f"<TaskFuture of {self._name or self.function!r}, task {task}: {state}>"

    @property
    def task_id(self) -> str:
        """The task's id; waits until the server has recorded the task, and raises if it did not."""
        task_id = self._wait_recorded()
        if task_id is None:
            error = self.exception()
            raise error if error is not None else TreadleError("the task was not recorded")
        return task_id

    def status(self) -> Status:
        """The task's status, asked of the server."""
        from .records import Status

        return Status.of(self._backend.get_task(self.task_id).status)

    def logs(self) -> str:
        """What the latest attempt has printed so far."""
        return self._backend.get_logs(self.task_id, 0).text

    def result(self, timeout: Optional[float] = None) -> T:
        """Return what the function returned, or raise what it raised.

        Raises concurrent.futures.TimeoutError when the wait ends first, treadle.Cancelled
        for a cancelled task, another TaskFailed for the other failures.
        """
        error = self.exception(timeout)
        if error is not None:  # not its truth: an exception may be false
            try:
                raise error
            finally:
                # The traceback of what is raised refers to this frame: nothing may lead back from here.
                del error, self
        return super().result(0)

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        """Return what the function raised, None if it returned; raises as result does otherwise."""
        try:
            return super().exception(timeout)
        except concurrent.futures.CancelledError:
            raise self._cancelled() from None
        except concurrent.futures.TimeoutError:
            raise concurrent.futures.TimeoutError(self._unfinished(timeout or 0.0)) from None

    def _unfinished(self, waited: float) -> str:
        """Why there is nothing yet, as far as that can be had in a moment."""
        what = self._name or self.function
        if self._task_id is None:
            return f"the task of {what!r} was not recorded within {waited:.3g} s: no server has answered yet"
        look = f"client.task({self._task_id!r}) shows its record"
        # A poll costs no call, and an event loop stands for none.
        seen = self._backend.glance(self._task_id) if waited > 0 and not _in_event_loop() else None
        if seen is None:
            return f"task {self._task_id} of {what!r} is not finished after {waited:.3g} s; {look}"
        from .records import Status

        where = f" in the queue {seen.queue!r}" if seen.status == pb.Task.QUEUED else ""
        status = Status.of(seen.status).value
        hint = ""
        if self._backend.nested and seen.status == pb.Task.QUEUED:
            hint = "; the task that waits for it keeps its slot: give the worker room to grow (--slots MIN-MAX)"
        return f"task {self._task_id} of {what!r} is {status}{where} after {waited:.3g} s{hint}; {look}"

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Have fn called with this future when it is done, on a thread of the client; at once if it is done.

        What fn raises is logged. It ends neither that thread nor another future.
        """
        super().add_done_callback(functools.partial(_call, fn))

    def cancel(self, *, only_queued: bool = False) -> bool:
        """Cancel the task on the server, also while it runs; with only_queued not once it has started.

        Returns True when the task is cancelled, False when it had finished before, or goes on.
        Waits for the server's answer; raises Unavailable when no server can be asked.

        In an event loop it waits for nothing: it answers True at once, the future is cancelled,
        and the server is told in the background. (With only_queued it answers False there, and
        the future is cancelled when the task is.)
        """
        if self.done():
            return self.cancelled()
        if (self._hold is not None and self._hold(self)) or self._backend.withdraw(self):
            return self._mark_cancelled()
        if _in_event_loop():
            self._backend.cancel_later(self, only_queued)
            return False if only_queued else self._mark_cancelled()
        task_id = self._wait_recorded()
        if task_id is None or self.done():
            return self.cancelled()
        from .records import Status

        if Status.of(self._backend.cancel_task(task_id, only_queued).status) is not Status.CANCELLED:
            return False
        return self._mark_cancelled()

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in an event loop. Cancelling the waiting task cancels this one, in the background."""
        if not self.done():
            loop = asyncio.get_running_loop()
            done: asyncio.Future[None] = loop.create_future()
            self.add_done_callback(functools.partial(_wake, loop, done))
            try:
                yield from done
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self.result(0)

    # The rest is for this package.

    def _wait_recorded(self) -> Optional[str]:
        """The task's id as soon as it is recorded, None when that has failed."""
        if self._task_id is None:
            with _recording:
                while self._task_id is None and not self.done():
                    _recording.wait()
        return self._task_id

    def _mark_ended(self) -> None:
        if self._called is not None:
            self._called(self)
        if self._task_id is None:
            # Without having been recorded.
            with _recording:
                _recording.notify_all()

    def _mark_cancelled(self) -> bool:
        try:
            if not super().cancel():
                return False
            # Announced once, whoever was first to see it.
            with _recording:
                first, self._notified = not self._notified, True
            if first:
                # From here on wait and as_completed count it as done.
                self.set_running_or_notify_cancel()
        finally:  # a signal may interrupt a callback
            self._mark_ended()
        return True

    def _settle(self, outcome: Outcome) -> None:
        """Take what the task came to; a second outcome changes nothing."""
        try:
            if outcome.cancelled:
                self._mark_cancelled()
            elif outcome.error is not None:
                self.set_exception(outcome.error)
            else:
                self.set_result(outcome.value)
        except concurrent.futures.InvalidStateError:
            pass  # cancelled, or settled before
        except BaseException:
            # The future is done. What a callback raises is no matter of those who settle futures.
            log.exception("a callback of a future failed")
        finally:
            self._mark_ended()

    def _fail(self, exc: BaseException) -> None:
        """End it as what could not be sent."""
        self._settle(Outcome(error=exc if isinstance(exc, Exception) else TreadleError(type(exc).__name__)))

    def _cancelled(self) -> Cancelled:
        return Cancelled("the task was cancelled", error_type="Cancelled", task_id=self._task_id or "")

    def __reduce__(self) -> Any:
        raise TypeError("a TaskFuture belongs to its process; pass on its result() or its task_id")


def _call(fn: Callable[[concurrent.futures.Future[T]], object], future: concurrent.futures.Future[T]) -> None:
    """Call a callback. concurrent.futures logs an Exception; the others would end the client's thread."""
    try:
        fn(future)
    except Exception:
        raise
    except BaseException:
        if threading.current_thread() is threading.main_thread():
            raise  # a signal's, or the caller's own
        log.exception("a callback of a future failed")


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _wake(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None], _: object) -> None:
    """Tell a loop that a future is done. What it came to stays here: asyncio's futures refuse some exceptions."""
    try:
        loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(None))
    except RuntimeError:
        pass  # the loop was closed


def mark_unwanted(future: TaskFuture[Any], only_queued: bool) -> Optional[str]:
    """Note that a task is to be cancelled; returns its id, None as long as it is not recorded."""
    with _recording:
        future._unwanted = only_queued
        return future._task_id


def mark_recorded(recorded: Iterable[tuple[TaskFuture[Any], str]]) -> None:
    """Tell futures the ids of their tasks, all in one announcement."""
    with _recording:
        for future, task_id in recorded:
            future._task_id = task_id
        _recording.notify_all()
