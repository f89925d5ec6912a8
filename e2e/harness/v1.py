"""The resource form of the REST API."""

import inspect
import json
import textwrap
from typing import Any, Callable, Optional, Union

import requests

Json = dict[str, Any]
Function = Union[str, Callable[..., object]]


class V1:
    """A client of /v1. Functions are registered by their source text, once for each client."""

    def __init__(self, base: str, token: str = "", ca: str = "") -> None:
        self.base = base
        self._session = requests.Session()
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        if ca:
            self._session.verify = ca
            # A bundle that the environment names would go before it.
            self._session.trust_env = False
        self._registered: dict[object, str] = {}

    def request(self, method: str, path: str, body: object = None, timeout: float = 60) -> requests.Response:
        data = None if body is None else json.dumps(body)
        return self._session.request(method, self.base + path, data=data, timeout=timeout)

    def get(self, path: str, timeout: float = 60) -> Json:
        return answer(self.request("GET", path, timeout=timeout))

    def post(self, path: str, body: object = None, timeout: float = 60) -> Json:
        return answer(self.request("POST", path, body, timeout))

    def register(self, fn: Callable[..., object]) -> str:
        """Registers the source text of a function."""
        if fn not in self._registered:
            source = textwrap.dedent(inspect.getsource(fn))
            function = self.post("/v1/functions", {"name": fn.__name__, "source": source})
            self._registered[fn] = function["function_id"]
        return self._registered[fn]

    def _id(self, function: Function) -> str:
        return function if isinstance(function, str) else self.register(function)

    def submit(self, function: Function, *args: object, options: Optional[Json] = None) -> str:
        """Executes with JSON arguments; returns the task's id."""
        body = {"function": self._id(function), "args": list(args), "options": options or {}}
        task_id: str = self.post("/v1/tasks", body)["task_id"]
        return task_id

    def call(self, function: Function, *args: object, timeout: str = "30s", options: Optional[Json] = None) -> Json:
        """Executes with JSON arguments and waits."""
        path = f"/v1/functions/{self._id(function)}:call?timeout={timeout}"
        return self.post(path, {"args": list(args), "options": options or {}})

    def task(self, task_id: str) -> Json:
        return self.get(f"/v1/tasks/{task_id}")

    def result(self, task_id: str, wait: float = 30) -> Json:
        return self.get(f"/v1/tasks/{task_id}/result?wait={wait:g}s", timeout=wait + 30)

    def value(self, task_id: str, wait: float = 30) -> Any:
        """The result of a task that must complete."""
        result = self.result(task_id, wait)
        assert result["status"] == "COMPLETED", result
        return result["result"]

    def failure(self, task_id: str, wait: float = 30) -> Json:
        """The error of a task that must fail."""
        result = self.result(task_id, wait)
        assert result["status"] == "FAILED", result
        error = result["error"]
        assert isinstance(error, dict)
        return error

    def cancel(self, task_id: str) -> Json:
        return self.post(f"/v1/tasks/{task_id}:cancel")


def answer(resp: requests.Response) -> Json:
    """The body of an answer that must be good."""
    assert resp.status_code == 200, f"{resp.request.method} {resp.url}: {resp.status_code} {resp.text[:2000]}"
    body = resp.json()
    assert isinstance(body, dict)
    return body
