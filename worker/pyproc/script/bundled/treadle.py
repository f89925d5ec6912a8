"""What a function may ask of the worker that runs it.

This small module comes with the runner. Where the client package is installed, which has the
same names and many more, that one is imported instead.
"""

from __future__ import annotations

import collections
import datetime
import sys

__all__ = ["CurrentTask", "NoRetry", "RetryAfter", "current_task"]

CurrentTask = collections.namedtuple(
    "CurrentTask", "id attempt function_id function_name deadline timeout max_retries parent"
)
CurrentTask.__doc__ = """The task that a function runs for.

id is the same in each attempt: the idempotency key of side effects. attempt counts from 1.
deadline is an aware datetime, timeout is in seconds; both are None where there is none.
max_retries is how many lost workers the task survives. parent is the id of the task that
submitted this one, None for one that a client submitted.
"""


def current_task() -> CurrentTask | None:
    """The task that this code runs for, or None outside of one. Threads and forked children see it, too."""
    hook = sys.modules.get("_treadle_task")
    told = None if hook is None else hook.current()
    if told is None:
        return None
    if told["deadline"] is not None:
        told["deadline"] = datetime.datetime.fromtimestamp(told["deadline"], datetime.timezone.utc)
    return CurrentTask(*(told[name] for name in CurrentTask._fields))


class NoRetry(Exception):
    """Raise it to fail the task, whatever is left of function_retries; error is an exception or a text."""

    # The runner goes by this mark, as the client package has classes of its own.
    __treadle_retry__ = "never"

    def __init__(self, error: BaseException | str = "") -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return str(self.error)


class RetryAfter(Exception):
    """Raise it to have the next attempt wait so many seconds, 0.001 to 86400; error is an exception or a text."""

    __treadle_retry__ = "after"

    def __init__(self, seconds: float, error: BaseException | str = "") -> None:
        super().__init__(seconds, error)
        self.error = error
        try:
            self.seconds = float(min(max(seconds, 0.001), 86400.0))
        except TypeError:
            raise TypeError(f"RetryAfter: seconds is {seconds!r}: want a number, 0.001 to 86400") from None
        if self.seconds != self.seconds:  # the one number that differs from itself
            raise ValueError("RetryAfter: seconds is NaN: want a number, 0.001 to 86400")

    def __str__(self) -> str:
        return str(self.error)


def __getattr__(name: str) -> object:
    if name == "Client":
        raise AttributeError(
            "treadle.Client: the client package is not installed where this worker's Python finds it, "
            "and a task needs it to submit others: run 'python -m pip install treadle' with that Python"
        )
    raise AttributeError(f"module 'treadle' has no attribute {name!r}; this is the small one that comes with a worker")
