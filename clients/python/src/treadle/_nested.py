"""How a running task reaches the dispatcher of its worker, to submit tasks itself."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from .errors import Unavailable


class Endpoint(NamedTuple):
    """Where the dispatcher is, and the token of the attempt."""

    address: str
    token: str
    tls: bool
    ca: bytes
    # "host:port" that certificates are made out to; "" for the address.
    authority: str


def running() -> bool:
    """Whether this code runs for a task whose worker tells of its dispatcher."""
    # The runner of a worker has this module, and nobody else.
    hook: Any = sys.modules.get("_treadle_task")
    return hook is not None and hasattr(hook, "api") and hook.current() is not None


def endpoint() -> Endpoint:
    """Ask the worker. The answer changes when the worker moves to another dispatcher."""
    hook: Any = sys.modules.get("_treadle_task")
    try:
        told: dict[str, Any] = hook.api()
    except RuntimeError as exc:
        raise Unavailable(f"this task cannot submit others: {exc}") from None
    return Endpoint(
        told["address"],
        told["token"],
        told.get("tls", False),
        told.get("ca", "").encode(),
        told.get("authority", ""),
    )
