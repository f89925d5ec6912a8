"""Functions that tasks execute.

Each stands for itself (its imports are inside), as it travels in three ways: by reference
to this module, by value as if it had been typed into a script, and as source text.
"""

from collections.abc import Generator


def double(x: int) -> int:
    return x * 2


def add(a: int, b: int) -> int:
    return a + b


def add_ten(x: int) -> int:
    return x + 10


def square(x: int) -> int:
    return x**2


def same(value: object) -> object:
    return value


def arguments(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, kwargs


def fib(n: int) -> int:
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def nap(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def nap_then(seconds: float, value: int) -> int:
    import time

    time.sleep(seconds)
    return value


def total_and_size(items: list[int]) -> tuple[int, int]:
    return sum(items), len(items)


def doubled_items(items: list[int]) -> list[int]:
    return [2 * item for item in items]


def raise_value_error(text: str) -> None:
    raise ValueError(text)


def raise_memory_error() -> None:
    raise MemoryError("no memory left")


def recurse_for_ever(n: int = 0) -> int:
    return recurse_for_ever(n + 1) + 1


def raise_exit() -> None:
    import sys

    sys.exit(3)


def leave() -> None:
    import os

    os._exit(0)


def kill_own_runner() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def kill_parent() -> None:
    """Kills the agent, whose child a runner is."""
    import os
    import signal
    import time

    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def kill_agent(pid: int) -> str:
    """Kills the agent that it is told of, unless it is dead already."""
    import os
    import signal
    import time

    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return "elsewhere"
    time.sleep(60)
    return "survived"


def segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def count_up(n: int) -> Generator[int, None, None]:
    yield from range(n)


def note(path: str, seconds: float = 0, value: object = None) -> object:
    """Writes down that it started ("pid monotonic-time", one line for each start), then works for a while."""
    import os
    import time

    with open(path, "ab", buffering=0) as starts:
        starts.write(f"{os.getpid()} {time.monotonic()}\n".encode())
    time.sleep(seconds)
    return value


def note_and_wait(path: str, gate: str, value: object = None) -> object:
    """Writes down that it started, then works until the gate file exists."""
    import os
    import time

    with open(path, "ab", buffering=0) as starts:
        starts.write(f"{os.getpid()} {time.monotonic()}\n".encode())
    deadline = time.monotonic() + 300
    while not os.path.exists(gate):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody made {gate} within 300 s")
        time.sleep(0.01)
    return os.getpid() if value is None else value


def fail_first(path: str, failures: int) -> int:
    """Raises until it was started more than so many times; returns how often it was."""
    import os
    import time

    with open(path, "ab", buffering=0) as starts:
        starts.write(f"{os.getpid()} {time.monotonic()}\n".encode())
    with open(path, "rb") as starts:
        count = len(starts.readlines())
    if count <= failures:
        raise RuntimeError(f"failure {count}")
    return count


def leave_child(path: str) -> None:
    """Starts a child that is still there when its parent dies, and works for a while."""
    import os
    import subprocess
    import time

    child = subprocess.Popen(["sleep", "300"])
    with open(path, "ab", buffering=0) as starts:
        starts.write(f"{os.getpid()} {time.monotonic()}\n{child.pid} {time.monotonic()}\n".encode())
    time.sleep(300)


def letters(n: int) -> str:
    return "x" * n


def some_bytes(n: int) -> bytes:
    return b"\x00\xff" * (n // 2)


def zeros(n: int) -> bytes:
    return bytes(n)


def echo_bytes(data: bytes) -> bytes:
    return data


def lock() -> object:
    import threading

    return threading.Lock()


def say(text: str, times: int = 1) -> int:
    import sys

    for _ in range(times):
        print(text)
    print("to stderr", file=sys.stderr)
    return times
