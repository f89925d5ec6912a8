"""What a function may know of the task that it runs for."""

from __future__ import annotations

import datetime
import sys
from typing import Any, NamedTuple


class CurrentTask(NamedTuple):
    """The task that a function runs for.

    Attributes:
        id: the same in each attempt: the idempotency key of side effects.
        attempt: counted from 1.
        function_id: of the registration.
        function_name: that it was registered under.
        deadline: of the task, by the store's clock, or None.
        timeout: of one attempt in seconds, or None.
        max_retries: how many lost workers the task survives.
        parent: id of the task that submitted this one, None for one that a client submitted.
    """

    id: str
    attempt: int
    function_id: str
    function_name: str
    deadline: datetime.datetime | None
    timeout: float | None
    max_retries: int
    parent: str | None = None


def current_task() -> CurrentTask | None:
    """The task that this code runs for, or None outside of one.

    Threads that the function starts, and children that it forks, see it, too.
    """
    # The runner of a worker has this module, and nobody else.
    hook: Any = sys.modules.get("_treadle_task")
    told: dict[str, Any] | None = None if hook is None else hook.current()
    if told is None:
        return None
    deadline = told.get("deadline")
    return CurrentTask(
        id=told["id"],
        attempt=told["attempt"],
        function_id=told["function_id"],
        function_name=told["function_name"],
        deadline=None if deadline is None else datetime.datetime.fromtimestamp(deadline, datetime.timezone.utc),
        timeout=told.get("timeout"),
        max_retries=told["max_retries"],
        parent=told.get("parent"),
    )


# As in _retry.py: a function by value that names them loads on workers without this package.
CurrentTask.__module__ = current_task.__module__ = "treadle"
