"""Waiting for events: with a deadline, and loudly when it passes."""

import time
from typing import Callable, Optional, TypeVar

T = TypeVar("T")

# How long an event may take that should come at once. Generous, as machines are loaded:
# tests that promise a time measure it.
SOON = 20.0


class Late(AssertionError):
    """What was waited for did not happen in time."""


def until(probe: Callable[[], Optional[T]], what: str, timeout: float = SOON, every: float = 0.01) -> T:
    """Returns the first truthy answer of probe; raises Late, naming what, after timeout seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Late(f"waited {timeout:g} s for {what}; last answer: {answer!r}")
        time.sleep(every)
