"""The future of a task."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from ._results import Outcome
from .errors import Cancelled, TreadleError

if TYPE_CHECKING:
    from ._backend import Backend
    from .records import Status

T = TypeVar("T")


class TaskFuture(concurrent.futures.Future[T]):
    """The future of one task: a concurrent.futures.Future in every respect.

    wait, as_completed and asyncio.wrap_future take it. Callbacks run on a thread of the
    client; do not block in them. running() is always False, as by its meaning it would say
    that the call cannot be cancelled: status() asks the server.
    """

    def __init__(self, backend: Backend, function: str) -> None:
        super().__init__()
        self._backend = backend
        self._task_id: Optional[str] = None
        self._recorded = threading.Event()
        # A cancelled future is announced once, whoever was first to see it.
        self._notifying = threading.Lock()
        self._notified = False
        self.function = function
        """Id or name of the function, as it was submitted."""

    @property
    def task_id(self) -> str:
        """The task's id; waits until the server has recorded the task, and raises if it did not."""
        self._recorded.wait()
        if self._task_id is None:
            error = self.exception()
            raise error if error is not None else TreadleError("the task was not recorded")
        return self._task_id

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
        try:
            return super().result(timeout)
        except concurrent.futures.CancelledError:
            if not self.cancelled():
                raise  # the function raised it
            raise self._cancelled() from None

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        """Return what the function raised, None if it returned; raises as result does otherwise."""
        try:
            return super().exception(timeout)
        except concurrent.futures.CancelledError:
            raise self._cancelled() from None

    def cancel(self) -> bool:
        """Cancel the task on the server, also while it runs.

        Returns True when the task is cancelled, False when it had finished before.
        Raises Unavailable when no server can be asked.
        """
        if self.done():
            return self.cancelled()
        if self._backend.withdraw(self):
            return self._mark_cancelled()
        self._recorded.wait()
        if self._task_id is None or self.done():
            return self.cancelled()
        from .records import Status

        if Status.of(self._backend.cancel_task(self._task_id).status) is not Status.CANCELLED:
            return False
        return self._mark_cancelled()

    # The rest is for this package.

    def _mark_recorded(self, task_id: str) -> None:
        self._task_id = task_id
        self._recorded.set()

    def _mark_cancelled(self) -> bool:
        if not super().cancel():
            return False
        with self._notifying:
            first, self._notified = not self._notified, True
        if first:
            # From here on wait and as_completed count it as done.
            self.set_running_or_notify_cancel()
        self._recorded.set()
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
        self._recorded.set()

    def _cancelled(self) -> Cancelled:
        return Cancelled("the task was cancelled", error_type="Cancelled", task_id=self._task_id or "")

    def __reduce__(self) -> Any:
        raise TypeError("a TaskFuture belongs to its process; pass on its result() or its task_id")
