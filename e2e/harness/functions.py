"""Ways in which functions reach a runner, and what they leave behind."""

import types
from pathlib import Path
from typing import Callable, NamedTuple

from harness.wait import SOON, until

AnyFunction = Callable[..., object]


def by_reference(fn: AnyFunction) -> AnyFunction:
    """As a function of a module that runners can import: dill pickles its name."""
    return fn


def by_value(fn: AnyFunction) -> AnyFunction:
    """As if it had been typed into a script or a notebook: dill pickles its code."""
    assert isinstance(fn, types.FunctionType)
    scope: dict[str, object] = {"__name__": "__main__"}
    copy = types.FunctionType(fn.__code__, scope, fn.__name__, fn.__defaults__, fn.__closure__)
    copy.__module__, copy.__qualname__ = "__main__", fn.__qualname__
    scope[fn.__name__] = copy
    return copy


class Start(NamedTuple):
    """One start of a function of importable_zoo that keeps notes."""

    pid: int
    # By the clock that all processes of this machine share: time.monotonic.
    at: float


def starts(path: Path) -> list[Start]:
    """The starts noted so far."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    return [Start(int(pid), float(at)) for pid, at in (line.split() for line in lines)]


def wait_starts(path: Path, count: int, timeout: float = SOON) -> list[Start]:
    """Waits until so many starts are noted."""
    return until(lambda: s if len(s := starts(path)) >= count else None, f"start {count} in {path.name}", timeout)
