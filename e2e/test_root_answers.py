"""The letter of the root routes: every kind of request and its answer."""

import base64
import json
import pickle
from typing import Any

import pytest
import requests
from harness.fabric import Fabric
from harness.functions import by_value
from harness.root import L, Root, S
from importable_zoo import (
    arguments,
    count_up,
    double,
    leave,
    lock,
    nap,
    raise_exit,
    same,
    segfault,
)

UNKNOWN = "00000000-0000-4000-8000-000000000000"
GOOD_CALL = S(((21,), {}))


def raise_peculiar() -> None:
    class Foreign(Exception):
        pass

    raise Foreign("from elsewhere")


def test_what_this_is(root: Root) -> None:
    resp = root.get("")
    assert resp.status_code == 200
    assert resp.json()["service"] == "treadle"


@pytest.mark.parametrize(
    "payload",
    [
        "payload",
        "",
        "plain text",
        "not base64!",
        S(double).strip()[:-1],
        S(double).strip()[:-8],
        base64.b64encode(b"hello").decode(),
        base64.b64encode(pickle.dumps(double) + b"more").decode(),
        base64.b64encode(pickle.dumps(1, protocol=0)).decode(),
    ],
)
def test_payload_that_is_no_pickle(root: Root, payload: str) -> None:
    """400, and nothing is stored."""
    before = newest_function(root)
    resp = root.post("register_function", {"name": "bad", "payload": payload})
    assert resp.status_code == 400, resp.text
    assert resp.json()["detail"]
    assert newest_function(root) == before
    function_id = root.register(double)
    resp = root.post("execute_function", {"function_id": function_id, "payload": payload})
    assert resp.status_code == 400, resp.text
    assert resp.json()["detail"]


def newest_function(root: Root) -> Any:
    return requests.get(root.base + "v1/functions?page_size=1", timeout=10).json()["functions"]


REGISTER: dict[str, object] = {"name": "double", "payload": S(double)}
EXECUTE: dict[str, object] = {"function_id": UNKNOWN, "payload": GOOD_CALL}


def without(body: dict[str, object], field: str) -> dict[str, object]:
    return {k: v for k, v in body.items() if k != field}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("register_function", without(REGISTER, "name")),
        ("register_function", without(REGISTER, "payload")),
        ("register_function", {**REGISTER, "name": 5}),
        ("register_function", {**REGISTER, "name": None}),
        ("register_function", {**REGISTER, "payload": ["list"]}),
        ("register_function", {**REGISTER, "name": "n" * 257}),
        ("register_function", []),
        ("register_function", "text"),
        ("register_function", None),
        ("execute_function", without(EXECUTE, "function_id")),
        ("execute_function", without(EXECUTE, "payload")),
        ("execute_function", {**EXECUTE, "payload": 5}),
        ("execute_function", {**EXECUTE, "function_id": "five"}),
        ("execute_function", {**EXECUTE, "function_id": ""}),
        ("execute_function", {**EXECUTE, "function_id": 5}),
    ],
)
def test_body_of_wrong_form(root: Root, route: str, body: object) -> None:
    resp = root.post(route, body)
    assert resp.status_code == 422, resp.text
    detail = resp.json()["detail"]
    assert isinstance(detail, list)
    assert detail


@pytest.mark.parametrize("text", ["", "{", '{"name": "x"', "{} {}", "\0", '{"name": "x", "payload": "y"} trailing'])
@pytest.mark.parametrize("route", ["register_function", "execute_function"])
def test_body_that_is_not_one_json_object(root: Root, route: str, text: str) -> None:
    resp = requests.post(root.base + route, data=text, timeout=10)
    assert resp.status_code == 422, resp.text
    assert isinstance(resp.json()["detail"], list)


@pytest.mark.parametrize(
    ("method", "route", "want"),
    [
        ("GET", "register_function", 405),
        ("GET", "execute_function", 405),
        ("PUT", "register_function", 405),
        ("POST", f"status/{UNKNOWN}", 405),
        ("DELETE", f"result/{UNKNOWN}", 405),
        ("GET", "nothing/here", 404),
        ("POST", "registerfunction", 404),
        ("GET", "status/", 404),
    ],
)
def test_wrong_method_or_path(root: Root, method: str, route: str, want: int) -> None:
    resp = requests.request(method, root.base + route, timeout=10)
    assert resp.status_code == want, resp.text
    assert resp.json()["detail"]


@pytest.mark.parametrize("name", ["<lambda>", "🧵 threads", "a/b", "", "n" * 256])
def test_names(root: Root, name: str) -> None:
    resp = root.post("register_function", {"name": name, "payload": S(double)})
    assert resp.status_code == 200, resp.text
    assert root.value(root.execute(resp.json()["function_id"], 4)) == 8


def test_content_type_and_unknown_fields_do_not_matter(root: Root) -> None:
    body = json.dumps({"unknown": {"deep": [1]}, "name": "double", "payload": S(double)})
    for content_type in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"):
        headers = {"Content-Type": content_type}
        resp = requests.post(root.base + "register_function", data=body, headers=headers, timeout=10)
        assert resp.status_code == 200, resp.text


def test_ids_are_read_in_any_case(root: Root) -> None:
    function_id = root.register(double)
    assert function_id == function_id.lower()
    task_id = root.execute(function_id.upper(), 3)
    assert task_id == task_id.lower()
    assert root.value(task_id) == 6
    resp = root.get(f"result/{task_id.upper()}")
    assert resp.json()["task_id"] == task_id


def test_base64_in_every_form(root: Root) -> None:
    """With newlines, without, with other white space; every length of the last line."""
    function_id = root.register(same)
    tasks = {}
    for length in range(0, 80):
        data = pickle.dumps(((b"x" * length,), {}))
        mime = base64.encodebytes(data).decode()
        forms = [mime, base64.b64encode(data).decode(), mime.replace("\n", "\r\n")]
        resp = root.post("execute_function", {"function_id": function_id, "payload": forms[length % 3]})
        assert resp.status_code == 200, f"length {length}: {resp.text}"
        tasks[length] = resp.json()["task_id"]
    for length, task_id in tasks.items():
        assert root.value(task_id) == b"x" * length


@pytest.mark.parametrize(
    ("sent", "want"),
    [
        (((1, 2), {"k": 3}), ((1, 2), {"k": 3})),
        ([[1, 2], {"k": 3}], (([1, 2], {"k": 3}), {})),
        ((1, 2, 3), ((1, 2, 3), {})),
        ([1, 2], ((1, 2), {})),
        ({"k": 3}, ((), {"k": 3})),
        (5, ((5,), {})),
        (None, ((None,), {})),
        ((), ((), {})),
    ],
)
def test_lenient_arguments(root: Root, sent: object, want: object) -> None:
    function_id = root.register(arguments)
    resp = root.post("execute_function", {"function_id": function_id, "payload": S(sent)})
    assert resp.status_code == 200, resp.text
    assert root.value(resp.json()["task_id"]) == want


def test_results_are_mime_base64_of_a_pickle(root: Root) -> None:
    task_id = root.run(same, "y" * 500)
    root.value(task_id)
    text: str = root.get(f"result/{task_id}").json()["result"]
    assert text.endswith("\n")
    assert {len(line) for line in text.splitlines()[:-1]} == {76}


def test_exit_becomes_an_error_that_can_be_raised(root: Root) -> None:
    ended = root.end(root.run(raise_exit))
    assert ended.status == "FAILED"
    assert type(ended.result) is RuntimeError
    assert "SystemExit" in str(ended.result)
    assert ended.body["error"]["error_type"] == "FunctionExecutionFailure"
    assert ended.body["error"]["exception_type"] == "SystemExit"


def test_foreign_exception_becomes_an_error_that_loads_everywhere(root: Root) -> None:
    ended = root.end(root.run(by_value(raise_peculiar)))
    assert ended.status == "FAILED"
    assert type(ended.result) is RuntimeError
    assert "Foreign" in str(ended.result)
    assert "from elsewhere" in str(ended.result)
    assert ended.result.error_type == "FunctionExecutionFailure"  # type: ignore[attr-defined]


@pytest.mark.parametrize("fn", [leave, segfault])
def test_runner_that_dies_is_a_worker_failure(root: Root, fn: Any) -> None:
    resp = root.post("register_function", {"name": "dies", "payload": S(fn)})
    task_id = root.execute(resp.json()["function_id"])
    ended = root.end(task_id)
    assert ended.status == "FAILED"
    assert type(ended.result) is RuntimeError
    assert ended.result.error_type == "WorkerFailureError"  # type: ignore[attr-defined]
    assert "WorkerFailureError: the task lost its worker" in str(ended.result)
    assert ended.result.message == str(ended.result)  # type: ignore[attr-defined]
    assert ended.body["error"]["error_type"] == "WorkerFailureError"


@pytest.mark.parametrize("fn", [lock, count_up])
def test_result_that_cannot_be_pickled(root: Root, fn: Any) -> None:
    task_id = root.run(fn, *([3] if fn is count_up else []))
    ended = root.end(task_id)
    assert ended.status == "FAILED"
    assert isinstance(ended.result, ValueError)
    assert ended.result.error_type == "SerializationError"  # type: ignore[attr-defined]
    assert "SerializationError" in str(ended.result)
    assert ended.body["error"]["error_type"] == "SerializationError"


def test_object_that_is_not_callable(root: Root) -> None:
    resp = root.post("register_function", {"name": "five", "payload": S(5)})
    assert resp.status_code == 200
    ended = root.end(root.execute(resp.json()["function_id"]))
    assert ended.status == "FAILED"
    assert ended.body["error"]["error_type"] == "SerializationError"
    assert "callable" in ended.body["error"]["message"]


def test_module_that_no_runner_has(root: Root) -> None:
    payload = base64.encodebytes(b"\x80\x04\x8c\x0cnot_anywhere\x8c\x01f\x93.").decode()
    resp = root.post("register_function", {"name": "f", "payload": payload})
    assert resp.status_code == 200, "the server does not import"
    ended = root.end(root.execute(resp.json()["function_id"]))
    assert ended.status == "FAILED"
    assert ended.body["error"]["error_type"] == "SerializationError"
    assert "not_anywhere" in ended.body["error"]["message"]


def test_cancelled_task(shared: Fabric) -> None:
    root = shared.root
    task_id = root.run(nap, 60)
    root.wait_status(task_id, "RUNNING")
    shared.v1.cancel(task_id)
    ended = root.end(task_id)
    assert ended.status == "CANCELLED"
    assert type(ended.result) is RuntimeError
    assert "cancelled" in str(ended.result).lower()


def test_task_called_with_json(shared: Fabric) -> None:
    """Its result is a pickle at the root all the same."""
    v1 = shared.v1
    value = {"n": 2**80, "f": 0.5, "s": "é🧵", "l": [None, True, False, -1], "d": {"": {}}}
    task_id = v1.submit(same, value)
    assert v1.value(task_id) == value
    result = shared.root.value(task_id)
    assert result == value
    assert type(result["n"]) is int and type(result["f"]) is float
    assert L(shared.root.get(f"result/{task_id}").json()["result"]) == value
