"""Everything that this package raises.

TreadleError
    Unavailable             no server answered
    InvalidRequest          the request is malformed
    NotFound                no function, task or worker of that id or name
    Conflict                a request id was used before with other content
    IllegalState            not possible in the current state
    TooLarge                a payload or an answer is over the limit
    Exhausted               a quota or a full disk: try again later
    Unauthenticated         the token is missing or unknown
    PermissionDenied        the token's role does not allow the call
    ClientClosed            the client was closed
    PicklingError           something cannot be sent
    UnpicklingError         something that came cannot be read here
    TaskFailed              a task is FAILED or CANCELLED
        WorkerFailureError      its worker was lost, too often
        DeadlineExceededError   timeout or deadline
        ResourceLimitExceeded   memory limit, result too large
        SerializationError      the worker could not read or write a value
        Cancelled               asked for by a client

A function that raises an exception which this process can load is no TaskFailed: that
very exception is raised again, with the worker's traceback as its cause (RemoteTraceback).

Functions themselves raise treadle.NoRetry and treadle.RetryAfter to decide on their next attempt.
"""

from __future__ import annotations

import concurrent.futures
import pickle
from typing import Any


class TreadleError(Exception):
    """Base class of everything that this package raises by itself."""

    reason: str = ""
    """The server's word for it (docs/errors.md), empty when the call reached no server."""


class Unavailable(TreadleError):
    """No server answered within the client's timeout.

    What was asked for may or may not have been recorded. Futures that fail with this
    have a task that goes on: Client.future(task_id) waits for it anew.
    """


class InvalidRequest(TreadleError, ValueError):
    """The request is malformed; the message says what to change."""


class NotFound(TreadleError, LookupError):
    """There is no function, task or worker of that id or name."""


class Conflict(TreadleError):
    """The request id was used before with other content."""


class IllegalState(TreadleError):
    """Not possible in the current state."""


class TooLarge(TreadleError):
    """A payload or an answer is over the limit, which the message names."""


class Exhausted(TreadleError):
    """A quota or a full disk; try again later."""


class Unauthenticated(TreadleError):
    """The token is missing or unknown."""


class PermissionDenied(TreadleError):
    """The token's role does not allow the call."""


class ClientClosed(TreadleError):
    """The client was closed. Tasks that it recorded go on."""


class PicklingError(TreadleError, pickle.PicklingError):
    """A function or an argument cannot be turned into bytes; nothing was sent."""


class UnpicklingError(TreadleError, pickle.UnpicklingError):
    """A result cannot be loaded in this process; the task itself is COMPLETED."""


class TaskFailed(TreadleError):
    """A task is FAILED.

    Raised itself where a function raised what this process cannot load (or may not,
    see Client's unpickle); its subclasses are the other classes of failure.
    """

    def __init__(
        self,
        message: str = "",
        *,
        error_type: str = "FunctionExecutionFailure",
        exception_type: str = "",
        traceback: str = "",
        task_id: str = "",
        worker_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        """The exception's text, or why the task failed."""
        self.error_type = error_type
        """The failure class as the server names it."""
        self.exception_type = exception_type
        """The raised exception's class, for example "ValueError"; empty where none was raised."""
        self.traceback = traceback
        """The worker's traceback as text, at most 64 KiB; may be empty."""
        self.task_id = task_id
        self.worker_id = worker_id

    def __str__(self) -> str:
        if self.exception_type:
            return f"{self.exception_type}: {self.message}" if self.message else self.exception_type
        return self.message or self.error_type


class WorkerFailureError(TaskFailed):
    """More workers were lost under the task than its max_retries allows."""


class DeadlineExceededError(TaskFailed):
    """The task's timeout or deadline passed. (A wait that ends early is a TimeoutError.)"""


class ResourceLimitExceeded(TaskFailed):
    """The task went over its memory limit, or its result over the size limit."""


class SerializationError(TaskFailed):
    """The worker could not load the function or its arguments, or not pickle the result."""


class Cancelled(TaskFailed, concurrent.futures.CancelledError):
    """The task was cancelled, by this client or by another one."""


class RemoteTraceback(Exception):
    """The worker's traceback, as the cause of the exception that the function raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


_BY_ERROR_TYPE: dict[str, type[TaskFailed]] = {
    cls.__name__: cls
    for cls in (WorkerFailureError, DeadlineExceededError, ResourceLimitExceeded, SerializationError, Cancelled)
}


def task_failed(error_type: str, **details: Any) -> TaskFailed:
    """The exception of a failure class; those that this version does not know are TaskFailed."""
    return _BY_ERROR_TYPE.get(error_type, TaskFailed)(error_type=error_type, **details)
