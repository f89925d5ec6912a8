"""The Python client of Treadle: register a function once, execute it any number of times.

    import treadle

    def double(x):
        return 2 * x

    with treadle.Client() as client:
        future = client.submit(double, 21)      # a concurrent.futures.Future
        print(future.result())                  # 42
        print(list(client.map(double, range(5))))

See Client, TaskFuture, Options and the exceptions in treadle.errors.
"""

from ._current import CurrentTask, current_task
from ._retry import NoRetry, RetryAfter
from ._version import __version__
from .client import Client
from .errors import (
    Cancelled,
    ClientClosed,
    Conflict,
    DeadlineExceededError,
    Exhausted,
    IllegalState,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    PicklingError,
    RemoteTraceback,
    ResourceLimitExceeded,
    SerializationError,
    TaskFailed,
    TooLarge,
    TreadleError,
    Unauthenticated,
    Unavailable,
    UnpicklingError,
    WorkerFailureError,
)
from .executor import Executor
from .function import Function
from .future import TaskFuture
from .options import Options
from .records import Attempt, Queue, ServerInfo, Status, Task, Worker

__all__ = [
    "Attempt",
    "Cancelled",
    "Client",
    "ClientClosed",
    "Conflict",
    "CurrentTask",
    "DeadlineExceededError",
    "Executor",
    "Exhausted",
    "Function",
    "IllegalState",
    "InvalidRequest",
    "NoRetry",
    "NotFound",
    "Options",
    "PermissionDenied",
    "PicklingError",
    "Queue",
    "RemoteTraceback",
    "ResourceLimitExceeded",
    "RetryAfter",
    "SerializationError",
    "ServerInfo",
    "Status",
    "Task",
    "TaskFailed",
    "TaskFuture",
    "TooLarge",
    "TreadleError",
    "Unauthenticated",
    "Unavailable",
    "UnpicklingError",
    "Worker",
    "WorkerFailureError",
    "__version__",
    "current_task",
]
