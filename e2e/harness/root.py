"""The four root routes, as their old clients write them."""

import codecs
import time
from typing import Any, Callable, NamedTuple

import dill
import requests

TERMINAL = ("COMPLETED", "FAILED", "CANCELLED")


def S(x: object) -> str:
    """What clients send and what they get: MIME base64 of a pickle."""
    text: str = codecs.encode(dill.dumps(x), "base64").decode()
    return text


def L(text: str) -> Any:
    """The opposite of S."""
    return dill.loads(codecs.decode(text.encode(), "base64"))


class Ended(NamedTuple):
    """The end of a task."""

    status: str
    result: Any
    body: dict[str, Any]


class Root:
    """A client of the root routes. base ends in a slash, as that of old clients does."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._session = requests.Session()

    def post(self, route: str, body: object) -> requests.Response:
        return self._session.post(self.base + route, json=body, timeout=60)

    def get(self, route: str) -> requests.Response:
        return self._session.get(self.base + route, timeout=60)

    def register(self, fn: Callable[..., object], name: str = "") -> str:
        resp = self.post("register_function", {"name": name or fn.__name__, "payload": S(fn)})
        assert resp.status_code in (200, 201), resp.text
        function_id: str = resp.json()["function_id"]
        return function_id

    def execute(self, function_id: str, *args: object, **kwargs: object) -> str:
        resp = self.post("execute_function", {"function_id": function_id, "payload": S((args, kwargs))})
        assert resp.status_code in (200, 201), resp.text
        task_id: str = resp.json()["task_id"]
        return task_id

    def run(self, fn: Callable[..., object], *args: object, **kwargs: object) -> str:
        return self.execute(self.register(fn), *args, **kwargs)

    def status(self, task_id: str) -> str:
        resp = self.get(f"status/{task_id}")
        assert resp.status_code == 200, resp.text
        body = resp.json()
        assert body["task_id"] == task_id, body
        status: str = body["status"]
        assert status in ("QUEUED", "RUNNING", *TERMINAL), body
        return status

    def wait_status(self, task_id: str, *wanted: str, timeout: float = 30) -> str:
        """Polls until the task has one of the wanted states; another terminal one is an error."""
        deadline = time.monotonic() + timeout
        pause = 0.005
        while True:
            status = self.status(task_id)
            if status in wanted:
                return status
            assert status not in TERMINAL, f"task {task_id} is {status}: {self.get(f'result/{task_id}').text[:2000]}"
            assert time.monotonic() < deadline, f"task {task_id} is still {status} after {timeout:g} s"
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def end(self, task_id: str, timeout: float = 30) -> Ended:
        """Polls as old clients do, and fetches the result."""
        status = self.wait_status(task_id, *TERMINAL, timeout=timeout)
        resp = self.get(f"result/{task_id}")
        assert resp.status_code == 200, resp.text
        body = resp.json()
        assert body["task_id"] == task_id, body
        assert body["status"] == status, body
        return Ended(status, L(body["result"]), body)

    def value(self, task_id: str, timeout: float = 30) -> Any:
        """The result of a task that must complete."""
        ended = self.end(task_id, timeout)
        assert ended.status == "COMPLETED", ended.body
        return ended.result
