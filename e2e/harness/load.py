"""Clients that go on submitting whatever happens to the server, and what was promised to them."""

import threading
import time
import uuid
from pathlib import Path
from typing import Optional

import requests
from importable_zoo import note

from harness.functions import starts
from harness.v1 import V1
from harness.wait import until


class Load:
    """Submits note tasks from a few threads, each with a request id, until stopped.

    A submission whose answer did not come is sent again with the same request id, as the
    contract asks; so each request has one task, however often it was sent.
    """

    def __init__(self, v1: V1, folder: Path, threads: int = 3, seconds: float = 0.02) -> None:
        folder.mkdir()
        self._v1 = v1
        self._folder = folder
        self._seconds = seconds
        self._function = v1.register(note)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: Optional[BaseException] = None
        # Number of a request to its task.
        self.acknowledged: dict[int, str] = {}
        self.repeated = 0
        self._next = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def notes(self, number: int) -> Path:
        return self._folder / str(number)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    number = self._next
                    self._next += 1
                task_id = self._submit(number)
                with self._lock:
                    self.acknowledged[number] = task_id
                # A steady trickle, not a flood.
                self._stop.wait(0.01)
        except BaseException as failure:
            self._failure = failure
            raise

    def _submit(self, number: int) -> str:
        args = [str(self.notes(number)), self._seconds, number]
        body = {"function": self._function, "args": args, "request_id": str(uuid.uuid4())}
        deadline = time.monotonic() + 60
        while True:
            try:
                resp = self._v1.request("POST", "/v1/tasks", body, timeout=5)
                # 503: a server that drains or starts takes nothing, and says so.
                if resp.status_code != 503:
                    assert resp.status_code == 200, resp.text
                    task_id: str = resp.json()["task_id"]
                    return task_id
            except (requests.ConnectionError, requests.Timeout):
                pass
            assert time.monotonic() < deadline, "the server was away for a minute"
            with self._lock:
                self.repeated += 1
            # Paces the attempts to reach a server that is away.
            time.sleep(0.02)

    def go_on(self, count: int) -> None:
        """Waits until so many more submissions were acknowledged."""
        goal = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= goal, f"{count} more acknowledged submissions")

    def stop(self) -> None:
        """Ends the load; each request was acknowledged."""
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()
        if self._failure is not None:
            raise self._failure
        assert len(self.acknowledged) == self._next

    def check(self) -> dict[int, int]:
        """Every acknowledged task completed with its own value; returns how often each ran."""
        assert len(set(self.acknowledged.values())) == len(self.acknowledged), "two requests share a task"
        for number, task_id in self.acknowledged.items():
            assert self._v1.value(task_id) == number
        return {number: len(starts(self.notes(number))) for number in self.acknowledged}
