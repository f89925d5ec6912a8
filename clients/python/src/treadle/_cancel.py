"""Cancellations that nobody waits for."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Callable

log = logging.getLogger("treadle")

# How many cancellations are under way at once.
WINDOW = 100


class Canceller:
    """One thread that asks for what has queued up; it starts with the first and ends with the client."""

    def __init__(self, ask: Callable[[list[tuple[str, bool]]], object]) -> None:
        """ask cancels tasks by id, each only if it is queued where that is so, and raises nothing."""
        self._ask = ask
        # Guards everything below.
        self._changed = threading.Condition()
        self._queue: deque[tuple[str, bool]] = deque()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, task_id: str, only_queued: bool) -> None:
        """Have a task cancelled. Waits for nobody."""
        with self._changed:
            self._queue.append((task_id, only_queued))
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="treadle-cancel", daemon=True)
                try:
                    thread.start()
                except RuntimeError as exc:  # no more threads, or the interpreter ends
                    log.warning("nothing can cancel task %s: %s", task_id, exc)
                    return
                self._thread = thread
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Ask for what is queued, for at most timeout seconds, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closed:
                        return
                    self._changed.wait()
                window = [self._queue.popleft() for _ in range(min(len(self._queue), WINDOW))]
            self._ask(window)
