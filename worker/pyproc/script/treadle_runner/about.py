"""What a function may know of the task that it runs for.

Functions ask by ``treadle.current_task()``. The package ``treadle`` is the client's where that
is installed, and otherwise a small one that comes with the runner; both ask the module
``_treadle_task``, which is in ``sys.modules`` of a runner and nowhere else.
"""

from __future__ import annotations

import _thread
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from typing import Any

from . import wire

_HOOK = "_treadle_task"

# Bound at start: user code may replace what the modules hold.
_getpid, _write, _os_read, _loads = os.getpid, os.write, os.read, json.loads


def uuid_text(value: bytes) -> str:
    """An id as uuid.UUID writes it; importing that module takes longer than all else of a start."""
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class About:
    """The task of the attempt that runs. Threads of the function and forked children see it, too."""

    def __init__(self, ask: int, answers: int) -> None:
        """The descriptors lead to the agent: it is asked for the way to the dispatcher, see ask.go."""
        self._ask, self._answers = ask, answers
        self._asking = _thread.allocate_lock()
        self._pid = os.getpid()
        self._call: tuple[bytes, memoryview, int] | None = None
        hook = types.ModuleType(_HOOK, "What the runner tells of the attempt that runs; see treadle.current_task.")
        hook.current = self.current  # type: ignore[attr-defined]
        hook.api = self.api  # type: ignore[attr-defined]
        sys.modules[_HOOK] = hook
        sys.meta_path.insert(0, _Finder)

    def tell(self, call: tuple[bytes, memoryview, int]) -> None:
        """Note the task, the body and the length of the name of a call; it is read only when somebody asks."""
        self._call = call

    def forget(self) -> None:
        """The attempt is over."""
        self._call = None

    def current(self) -> dict[str, Any] | None:
        """What is known, by names that only become more; None between attempts."""
        call = self._call
        if call is None:
            return None
        task, body, name_len = call
        function, deadline, timeout, attempt, max_retries, parent = wire.TOLD.unpack_from(body, wire.CALL.size)
        name = body[wire.CALL_SIZE : wire.CALL_SIZE + name_len]
        return {
            "id": uuid_text(task),
            "attempt": attempt,
            "function_id": uuid_text(function),
            "function_name": bytes(name).decode("utf-8", "replace"),
            "deadline": deadline / 1e9 if deadline else None,
            "timeout": timeout / 1e9 if timeout else None,
            "max_retries": max_retries,
            "parent": uuid_text(parent) if any(parent) else None,
        }

    def api(self) -> dict[str, Any]:
        """How the attempt that runs calls its dispatcher; raises RuntimeError where it cannot."""
        call = self._call
        if call is None:
            raise RuntimeError("no task runs")
        if _getpid() != self._pid:
            raise RuntimeError("a process that the function started cannot ask: do it in the function itself")
        with self._asking:
            if self._ask < 0:
                raise RuntimeError("an answer was interrupted; this runner can ask no more")
            ask, self._ask = self._ask, -1
            try:
                _write(ask, call[0])
                told: dict[str, Any] = _loads(self._read(int.from_bytes(self._read(4), "little")))
            except OSError as exc:
                raise RuntimeError("the worker does not answer") from exc
            self._ask = ask
        if "error" in told:
            raise RuntimeError(told["error"])
        return told

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = _os_read(self._answers, size - len(data))
            if not more:
                raise OSError("the pipe is closed")
            data += more
        return data


class _Finder:
    """Finds the package that comes with the runner, where no other one is installed.

    A folder on sys.path would not do: a folder named treadle in the working directory, without
    any Python in it, would be taken for a package before it.
    """

    # Constant while the runner's modules are out of reach.
    _path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bundled", "treadle.py")

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "treadle":
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        if found is not None and found.origin is not None:
            return found
        return importlib.util.spec_from_file_location(name, cls._path)
