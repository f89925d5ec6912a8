"""The resource form's records: tasks, lists, logs, watch, workers, queues, and what the HTTP port tells of itself."""

import json
import re
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from conftest import Own
from harness.fabric import Fabric
from harness.functions import wait_starts
from harness.v1 import V1, Json
from harness.wait import until
from importable_zoo import double, fail_first, note_and_wait, raise_value_error

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def when(text: str) -> datetime:
    """An RFC 3339 time in UTC, cut to the microseconds that Python knows."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{seconds}.{fraction:0<6.6}+00:00")


def test_record_of_a_task(shared: Fabric) -> None:
    v1 = shared.v1
    task_id = v1.submit(double, 21, options={"priority": 7, "timeout": "20s", "max_retries": 1, "function_retries": 2})
    v1.value(task_id)
    record = v1.task(task_id)
    assert record["task_id"] == task_id
    assert record["function_id"] == v1.register(double)
    assert record["function_name"] == "double"
    assert (record["queue"], record["runtime"], record["status"]) == ("default", "python", "COMPLETED")
    assert record["priority"] == 7
    assert record["attempt_count"] == 1
    assert when(record["created_at"]) <= when(record["started_at"]) <= when(record["finished_at"])
    (attempt,) = record["attempts"]
    assert (attempt["number"], attempt["end"]) == (1, "succeeded")
    assert attempt["worker"] == record["worker"]
    workers = [w["worker_id"] for w in v1.get("/v1/workers")["workers"]]
    assert record["worker"] in workers
    options = record["options"]
    assert (options["priority"], options["timeout"], options["max_retries"], options["function_retries"]) == (
        7,
        "20s",
        1,
        2,
    )
    assert record["args_size"] > 0 and record["result_size"] == 2
    for path in (f"/v1/tasks/{UNKNOWN}", "/v1/tasks/not-a-uuid"):
        resp = v1.request("GET", path)
        assert resp.status_code == 404
        assert resp.json()["error"]["reason"] == "NOT_FOUND"


def test_record_of_a_failure(v1: V1) -> None:
    task_id = v1.submit(raise_value_error, "text")
    error = v1.failure(task_id)
    record = v1.task(task_id)
    assert record["status"] == "FAILED"
    assert record["error"]["message"] == error["message"] == "text"
    assert record["error"]["traceback"] == error["traceback"]


def pages(v1: V1, path: str, field: str, size: int) -> list[list[Json]]:
    """All pages of a list. A page may be short before the end: a server need not search for ever."""
    found, token = [], ""
    separator = "&" if "?" in path else "?"
    while True:
        answer = v1.get(f"{path}{separator}page_size={size}&page_token={token}")
        found.append(answer[field])
        token = answer.get("next_page_token", "")
        if not token:
            return found
        assert len(answer[field]) <= size
        assert len(found) < 1000, f"{path}: 1000 pages and no end"


def test_lists_filter_and_page(v1: V1) -> None:
    name = f"f-{uuid.uuid4().hex}"
    source = "def f(x):\n    if x % 3 == 0:\n        raise ValueError(x)\n    return x"
    function = v1.post("/v1/functions", {"name": name, "source": source})["function_id"]
    tasks = [v1.submit(function, n) for n in range(10)]
    for task_id in tasks:
        v1.result(task_id)
    failed = [t for n, t in enumerate(tasks) if n % 3 == 0]
    newest_first = list(reversed(tasks))

    def listed(filter_: str, size: int = 100) -> list[str]:
        found = pages(v1, f"/v1/tasks?filter={quote(filter_)}", "tasks", size)
        return [task["task_id"] for page in found for task in page]

    assert listed(f"function = {function}") == newest_first
    assert listed(f"function = {function}", size=3) == newest_first
    assert listed(f"function = {name}") == newest_first
    assert listed(f"function = {function} AND status = FAILED") == list(reversed(failed))
    assert listed(f"status = COMPLETED AND function = {function}", size=2) == [
        t for t in newest_first if t not in failed
    ]
    assert listed(f"function = {function} AND status = QUEUED") == []
    middle = v1.task(tasks[4])["created_at"]
    assert listed(f'function = {function} AND create_time > "{middle}"') == list(reversed(tasks[5:]))
    assert listed(f'function = {function} AND create_time < "{middle}"') == list(reversed(tasks[:4]))
    worker = v1.task(tasks[0])["worker"]
    assert listed(f"function = {function} AND worker = {worker}") == newest_first
    assert listed(f"function = {function} AND worker = {UNKNOWN}") == []


@pytest.mark.parametrize(
    "query",
    [
        "filter=bogus",
        "filter=status%20%3D%20SLEEPING",
        "filter=colour%20%3D%20red",
        "filter=create_time%20%3E%20yesterday",
        "page_size=-1",
        "page_size=many",
        "page_token=made-up",
    ],
)
def test_lists_refuse_what_they_do_not_understand(v1: V1, query: str) -> None:
    resp = v1.request("GET", f"/v1/tasks?{query}")
    assert resp.status_code == 400, resp.text


def test_lists_of_functions(v1: V1) -> None:
    ids = [v1.post("/v1/functions", {"name": "f", "source": "def f(): pass"})["function_id"] for _ in range(5)]
    two = v1.get("/v1/functions?page_size=2")
    next_two = v1.get(f"/v1/functions?page_size=2&page_token={two['next_page_token']}")
    assert [f["function_id"] for f in two["functions"] + next_two["functions"]] == ids[:0:-1]
    found = [f["function_id"] for page in pages(v1, "/v1/functions", "functions", 50) for f in page]
    assert found[:5] == ids[::-1]
    assert len(found) == len(set(found))


def test_logs_of_each_attempt(v1: V1, tmp_path: Path) -> None:
    source = """
def f(path):
    import os
    attempt = len(os.listdir(path))
    open(os.path.join(path, str(attempt)), "w").close()
    print("attempt", attempt + 1, "🧵")
    if attempt < 2:
        raise RuntimeError("again")
"""
    function = v1.post("/v1/functions", {"name": "f", "source": source})["function_id"]
    task_id = v1.submit(function, str(tmp_path), options={"function_retries": 2})
    v1.value(task_id)
    logs = v1.get(f"/v1/tasks/{task_id}/logs")
    assert logs == {"task_id": task_id, "attempt": 3, "text": "attempt 3 🧵\n"}
    for attempt in (1, 2):
        text = v1.get(f"/v1/tasks/{task_id}/logs?attempt={attempt}")["text"]
        assert text == f"attempt {attempt} 🧵\n"
    assert v1.request("GET", f"/v1/tasks/{UNKNOWN}/logs").status_code == 404
    assert v1.request("GET", f"/v1/tasks/{task_id}/logs?attempt=9").status_code == 404


def test_logs_of_a_failed_task(v1: V1) -> None:
    function = v1.post("/v1/functions", {"name": "f", "source": "def f():\n    print('before')\n    1 / 0"})
    task_id = v1.submit(function["function_id"])
    v1.failure(task_id)
    assert v1.get(f"/v1/tasks/{task_id}/logs")["text"] == "before\n"


def watch(v1: V1, task_id: str) -> "tuple[requests.Response, Any]":
    resp = requests.get(f"{v1.base}/v1/tasks/{task_id}:watch", stream=True, timeout=30)
    assert resp.status_code == 200, resp.text
    return resp, (json.loads(line) for line in resp.iter_lines() if line)


def test_watch(v1: V1, tmp_path: Path) -> None:
    """One JSON document a line, at each change of the status, until the end."""
    gate = tmp_path / "gate"
    task_id = v1.submit(note_and_wait, str(tmp_path / "notes"), str(gate), 5)
    wait_starts(tmp_path / "notes", 1)
    resp, changes = watch(v1, task_id)
    seen = []
    for change in changes:
        seen.append(change["status"])
        if change["status"] == "RUNNING":
            gate.touch()
        assert change["task_id"] == task_id
    assert seen in (["RUNNING", "COMPLETED"], ["QUEUED", "RUNNING", "COMPLETED"])
    assert "ndjson" in resp.headers["Content-Type"] or "json" in resp.headers["Content-Type"]


def test_watch_of_a_requeue(v1: V1, tmp_path: Path) -> None:
    task_id = v1.submit(fail_first, str(tmp_path / "notes"), 1, options={"function_retries": 1})
    _, changes = watch(v1, task_id)
    records = list(changes)
    assert records[-1]["status"] == "COMPLETED"
    assert [a["end"] for a in records[-1]["attempts"]] == ["raised", "succeeded"]
    # A moment of RUNNING may be left out, but nothing is told twice.
    assert all(a != b for a, b in zip(records, records[1:])), records


def test_watch_of_a_finished_task(v1: V1) -> None:
    task_id = v1.submit(double, 2)
    v1.value(task_id)
    _, changes = watch(v1, task_id)
    assert [change["status"] for change in changes] == ["COMPLETED"]
    assert v1.request("GET", f"/v1/tasks/{UNKNOWN}:watch").status_code == 404


def test_workers(shared: Fabric, tmp_path: Path) -> None:
    process = shared.workers[-1] if shared.workers else shared.up
    record = shared.worker_record(process)
    assert record is not None
    assert uuid.UUID(record["worker_id"])
    mode = process.args[process.args.index("--mode") + 1] if shared.workers else "local"
    assert (record["mode"], record["state"], record["slots"]) == (mode, "active", 4)
    assert record["queues"] == ["default"]
    assert "python" in record["runtimes"]
    gate = tmp_path / "gate"
    busy = [shared.v1.submit(note_and_wait, str(tmp_path / str(n)), str(gate), n) for n in range(3)]

    def shows(running: int) -> bool:
        """The list of workers is presence: what dispatchers said of them lately."""
        now = shared.worker_record(process)
        return now is not None and (now["running"], now["offered"]) == (running, 0)

    until(lambda: shows(running=3), "three running tasks in the worker's record")
    gate.touch()
    assert [shared.v1.value(task_id) for task_id in busy] == [0, 1, 2]
    until(lambda: shows(running=0), "no running task in the worker's record")


def test_worker_that_died_leaves_the_list(own: Own) -> None:
    fabric = own.up()
    worker = fabric.worker("push", "--name", "short lived")
    record = fabric.worker_record(worker)
    assert record is not None and record["name"] == "short lived"
    worker.kill()
    until(lambda: fabric.v1.get("/v1/workers")["workers"] == [], "an empty list of workers", timeout=15)


def test_queues(own: Own) -> None:
    """Work goes to workers that serve its queue, and waits, visibly, where there is none."""
    fabric = own.up()
    v1 = fabric.v1
    fabric.worker("push")
    source = "def f(x): return x"
    functions = {
        queue: v1.post("/v1/functions", {"name": "f", "source": source, "queue": queue})["function_id"]
        for queue in ("gpu", "default")
    }
    waiting = [v1.submit(functions["gpu"], n) for n in range(3)]
    assert v1.value(v1.submit(functions["default"], 5)) == 5
    assert v1.get("/v1/queues")["queues"] == [{"name": "gpu", "runtime": "python", "queued": 3, "running": 0}]
    fabric.worker("pull", "--queues", "gpu,other")
    assert [v1.value(task_id) for task_id in waiting] == [0, 1, 2]
    assert v1.get("/v1/queues")["queues"] == []


def test_health_and_info(shared: Fabric) -> None:
    v1 = shared.v1
    assert v1.get("/healthz")["status"] == "ok"
    assert v1.get("/readyz")["status"] == "ready"
    info = v1.get("/v1/info")
    assert (info["durability"], info["max_payload"], info["retention"]) == ("embedded", 64 << 20, "86400s")


def samples(text: str, name: str) -> dict[str, float]:
    """The samples of one metric: labels to value."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(\{.*\})? (\S+)", line)
        if match and match[1] == name:
            found[match[2] or ""] = float(match[3])
    return found


def test_metrics(v1: V1) -> None:
    """Prometheus's text, whose counters count."""

    def requests_served() -> float:
        resp = v1.request("GET", "/metrics")
        assert resp.status_code == 200
        assert resp.headers["Content-Type"].startswith("text/plain")
        found = samples(resp.text, "treadle_http_requests_total")
        return sum(value for labels, value in found.items() if 'method="POST"' in labels and "/v1/tasks" in labels)

    before = requests_served()
    v1.value(v1.submit(double, 1))
    assert requests_served() == before + 1


def test_openapi_names_every_route(v1: V1) -> None:
    document = v1.get("/openapi.json")
    routes = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    for route in [
        ("POST", "/register_function"),
        ("POST", "/execute_function"),
        ("GET", "/status/{task_id}"),
        ("GET", "/result/{task_id}"),
        ("POST", "/v1/functions"),
        ("GET", "/v1/functions"),
        ("GET", "/v1/functions/{function}"),
        ("POST", "/v1/functions/{function}:call"),
        ("POST", "/v1/tasks"),
        ("POST", "/v1/tasks:batch"),
        ("GET", "/v1/tasks"),
        ("GET", "/v1/tasks/{task_id}"),
        ("GET", "/v1/tasks/{task_id}/result"),
        ("GET", "/v1/tasks/{task_id}/logs"),
        ("GET", "/v1/tasks/{task_id}:watch"),
        ("POST", "/v1/tasks/{task_id}:cancel"),
        ("GET", "/v1/workers"),
        ("GET", "/v1/queues"),
        ("GET", "/v1/info"),
    ]:
        assert route in routes


def test_pages_of_browsers_stay_out(v1: V1) -> None:
    """Other origins cannot post, and other hosts' names do not reach the server at all."""
    body = {"name": "f", "source": "def f(): pass"}
    evil = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    resp = requests.post(f"{v1.base}/v1/functions", json=body, headers=evil, timeout=10)
    assert resp.status_code == 403, resp.text
    resp = requests.get(f"{v1.base}/v1/tasks", headers={"Host": "evil.example"}, timeout=10)
    assert resp.status_code in (403, 421), resp.text
    for host in ("localhost", "127.0.0.1"):
        assert requests.get(f"{v1.base}/v1/tasks", headers={"Host": host}, timeout=10).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/tasks", 405),
        ("POST", f"/v1/tasks/{UNKNOWN}", 405),
        ("GET", f"/v1/tasks/{UNKNOWN}:cancel", 405),
        ("GET", "/v1/functions/double:call", 405),
        ("POST", "/v1/workers", 405),
    ],
)
def test_wrong_routes(v1: V1, method: str, path: str, status: int) -> None:
    resp = v1.request(method, path)
    assert resp.status_code == status, resp.text
    assert resp.json()["detail"]
