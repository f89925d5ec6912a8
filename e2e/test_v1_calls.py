"""The resource form with curl's eyes: functions from source, calls with JSON, batches, results."""

import base64
import json
import pickle
import time
import uuid
from pathlib import Path

import dill
import pytest
import requests
from harness.fabric import Fabric
from harness.functions import starts
from harness.v1 import V1
from importable_zoo import add, arguments, count_up, double, nap, note, raise_value_error, same, some_bytes

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def raw(v1: V1, path: str, text: str) -> requests.Response:
    """What `curl -d TEXT` sends: a form's content type, and the text as it is."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return requests.post(v1.base + path, data=text.encode(), headers=headers, timeout=60)


def test_first_minute(v1: V1) -> None:
    """What `treadle up` prints to paste."""
    function = raw(v1, "/v1/functions", '{"name": "double", "source": "def double(x): return 2 * x"}').json()
    assert function["name"] == "double"
    assert function["form"] == "source"
    assert uuid.UUID(function["function_id"])
    answer = raw(v1, "/v1/functions/double:call", '{"args": [21]}').json()
    assert uuid.UUID(answer.pop("task_id"))
    assert answer == {"status": "COMPLETED", "result": 42}
    tasks = v1.get("/v1/tasks")["tasks"]
    assert tasks[0]["function_name"] == "double"


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1",
        "9007199254740993",
        "-170141183460469231731687303715884105728",
        "1" * 100,
        "0.1",
        "1e+300",
        "null",
        "true",
        "false",
        '""',
        '"é 日本 🧵 \\u0000 \\" \\\\ \\n"',
        "[]",
        "{}",
        '[[[[[[[["deep"]]]]]]]]',
        '{"": {"a": [null, 1, 1.5, "x"]}, "🧵": []}',
    ],
)
def test_json_goes_through_unchanged(v1: V1, text: str) -> None:
    function = v1.register(same)
    body = raw(v1, f"/v1/functions/{function}:call", f'{{"args": [{text}]}}').text
    answer = json.loads(body)
    assert answer["status"] == "COMPLETED", answer
    assert answer["result"] == json.loads(text)
    assert type(answer["result"]) is type(json.loads(text))
    if text.lstrip("-").isdigit():
        assert text in body, "an integer changed its digits"


def test_args_and_kwargs(v1: V1) -> None:
    function = v1.register(arguments)
    for body, want in [
        ({"args": [1, "two"], "kwargs": {"k": None}}, [[1, "two"], {"k": None}]),
        ({"kwargs": {"k": 1}}, [[], {"k": 1}]),
        ({"args": []}, [[], {}]),
        ({}, [[], {}]),
    ]:
        answer = v1.post(f"/v1/functions/{function}:call", body)
        assert answer["result"] == want, answer


def test_call_without_body(v1: V1) -> None:
    answer = v1.post(f"/v1/functions/{v1.register(arguments)}:call")
    assert answer["result"] == [[], {}]


def test_call_of_a_function_that_fails(v1: V1) -> None:
    answer = v1.call(raise_value_error, "no such luck")
    assert answer["status"] == "FAILED"
    assert "result" not in answer
    error = answer["error"]
    assert error["error_type"] == "FunctionExecutionFailure"
    assert error["exception_type"] == "ValueError"
    assert error["message"] == "no such luck"
    assert error["traceback"].startswith("Traceback (most recent call last):")
    assert "raise ValueError(text)" in error["traceback"], "the line of the source"
    assert error["traceback"].endswith("ValueError: no such luck\n")
    assert error["task_id"] == answer["task_id"]


def test_call_with_wrong_arguments(v1: V1) -> None:
    answer = v1.call(add, 1)
    assert answer["status"] == "FAILED"
    assert answer["error"]["exception_type"] == "TypeError"


def test_call_that_takes_longer_than_its_wait(v1: V1) -> None:
    started = time.monotonic()
    answer = v1.call(nap, 1.5, timeout="0.2s")
    assert time.monotonic() - started < 1.4
    assert answer["status"] in ("QUEUED", "RUNNING"), answer
    assert "error" not in answer
    assert v1.value(answer["task_id"]) == 1.5


@pytest.mark.parametrize("value", ["{1, 2}", "b'\\xff'", "float('nan')", "2 + 3j", "object", "{1: 2}", "range(3)"])
def test_value_that_json_cannot_hold(v1: V1, value: str) -> None:
    source = f"def f():\n    return {value}"
    function = v1.post("/v1/functions", {"name": "f", "source": source})["function_id"]
    answer = v1.call(function)
    assert answer["status"] == "COMPLETED", answer
    want = eval(value)
    if "result" in answer:
        # Only where nothing is lost: never NaN, which is not JSON.
        assert answer["result"] == want
        return
    assert answer["result_repr"] == repr(want)
    assert repr(pickle.loads(base64.b64decode(answer["result_pickle"]))) == repr(want)


def test_functions_from_pickles(v1: V1) -> None:
    payload = base64.b64encode(dill.dumps(double)).decode()
    function = v1.post("/v1/functions", {"name": "double", "payload": payload})
    assert function["form"] == "pickle"
    assert v1.call(function["function_id"], 21)["result"] == 42


def test_pickled_arguments(v1: V1) -> None:
    """A task with a payload answers a pickle, which its root result is, too."""
    payload = base64.b64encode(pickle.dumps(((10,), {}))).decode()
    task_id = v1.post("/v1/tasks", {"function": v1.register(some_bytes), "payload": payload})["task_id"]
    result = v1.result(task_id)
    assert pickle.loads(base64.b64decode(result["result_pickle"])) == b"\x00\xff" * 5


def test_functions_by_name(v1: V1) -> None:
    """The newest registration is what the name means; ids stay what they are."""
    name = f"f-{uuid.uuid4().hex}-🧵"
    ids = [v1.post("/v1/functions", {"name": name, "source": f"def f(): return {n}"})["function_id"] for n in range(3)]
    assert v1.call(name)["result"] == 2
    assert [v1.call(i)["result"] for i in ids] == [0, 1, 2]
    assert v1.get(f"/v1/functions/{name}")["function_id"] == ids[2]
    assert v1.get(f"/v1/functions/{ids[0].upper()}")["function_id"] == ids[0]
    for path in ("/v1/functions/nobody-has-this-name", f"/v1/functions/{UNKNOWN}"):
        assert v1.request("GET", path).status_code == 404


@pytest.mark.parametrize(
    "source", ["def f(:", "x = 5", "def f(): pass\ndef g(): pass", "raise ValueError('at import')"]
)
def test_source_that_defines_no_function(v1: V1, source: str) -> None:
    """The server does not run it; the task says what is wrong."""
    resp = v1.request("POST", "/v1/functions", {"name": "h", "source": source})
    assert resp.status_code == 200, resp.text
    answer = v1.call(resp.json()["function_id"])
    assert answer["status"] == "FAILED"
    assert answer["error"]["error_type"] == "SerializationError", answer


def test_source_with_imports_helpers_and_state(v1: V1) -> None:
    source = """
import math

FACTOR = 3

def helper(x):
    return x * FACTOR

def main_one(x):
    return helper(math.floor(x))
"""
    function = v1.post("/v1/functions", {"name": "main_one", "source": source})["function_id"]
    assert v1.call(function, 2.9)["result"] == 6


def test_coroutine_functions(v1: V1) -> None:
    source = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0.01)\n    return x + 1"
    function = v1.post("/v1/functions", {"name": "f", "source": source})["function_id"]
    assert v1.call(function, 1)["result"] == 2


def test_generator_is_no_result(v1: V1) -> None:
    answer = v1.call(count_up, 3)
    assert answer["status"] == "FAILED"
    assert answer["error"]["error_type"] == "SerializationError"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/functions", {"name": "f"}, 400),
        ("/v1/functions", {"name": "", "source": "def f(): pass"}, 400),
        ("/v1/functions", {"name": "n" * 257, "source": "def f(): pass"}, 400),
        ("/v1/functions", {"name": "f", "source": "def f(): pass", "payload": "gAQu"}, 400),
        ("/v1/functions", {"name": "f", "payload": "no pickle"}, 400),
        ("/v1/functions", {"name": "f", "source": "def f(): pass", "runtime": "cobol"}, 400),
        ("/v1/functions/{double}:call", {"args": 5}, 400),
        ("/v1/functions/{double}:call", {"kwargs": [5]}, 400),
        ("/v1/functions/{double}:call?timeout=never", {"args": [5]}, 400),
        ("/v1/functions/{double}:call?timeout=-1s", {"args": [5]}, 400),
        ("/v1/functions/nobody:call", {"args": [5]}, 404),
        (f"/v1/functions/{UNKNOWN}:call", {"args": [5]}, 404),
        ("/v1/tasks", {}, 400),
        ("/v1/tasks", {"function": "nobody", "args": []}, 404),
        ("/v1/tasks", {"function": "{double}", "args": [1], "payload": "gARLAS4="}, 400),
    ],
)
def test_bad_requests(v1: V1, path: str, body: dict[str, object], status: int) -> None:
    """Each with one reason for machines and a text for people."""
    function = v1.register(double)
    body = {k: v.format(double=function) if isinstance(v, str) else v for k, v in body.items()}
    resp = v1.request("POST", path.format(double=function), body)
    assert resp.status_code == status, resp.text
    answer = resp.json()
    assert answer["detail"]
    assert answer["error"]["reason"].isupper()


@pytest.mark.parametrize("text", ["", "[]", "{", "{} {}", '{"args": [1,]}', '{"args": [NaN]}', '{"args": [01]}'])
def test_body_that_is_no_json_object(v1: V1, text: str) -> None:
    resp = raw(v1, "/v1/tasks", text)
    assert resp.status_code == 400, resp.text


def test_request_id_makes_a_request_once(v1: V1, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    body = {"function": v1.register(note), "args": [str(notes)], "request_id": str(uuid.uuid4())}
    ids = {v1.post("/v1/tasks", body)["task_id"] for _ in range(5)}
    assert len(ids) == 1
    v1.value(ids.pop())
    assert v1.post("/v1/tasks", body)["status"] == "COMPLETED"
    assert len(starts(notes)) == 1
    resp = v1.request("POST", "/v1/tasks", {**body, "args": [str(notes), 0.1]})
    assert resp.status_code == 409, resp.text
    call = {"args": [1], "request_id": str(uuid.uuid4())}
    answers = [v1.post(f"/v1/functions/{v1.register(double)}:call", call) for _ in range(2)]
    assert answers[0] == answers[1]
    register = {"name": "f", "source": "def f(): pass", "request_id": str(uuid.uuid4())}
    assert v1.post("/v1/functions", register) == v1.post("/v1/functions", register)


def test_batch(v1: V1) -> None:
    """Answered item by item, in order; a bad one harms no other."""
    function = v1.register(double)
    requests_: list[dict[str, object]] = [{"function": function, "args": [n]} for n in range(300)]
    requests_[7] = {"function": UNKNOWN, "args": [1]}
    requests_[8] = {"function": function, "args": [1], "options": {"priority": 99}}
    items = v1.post("/v1/tasks:batch", {"requests": requests_})["items"]
    assert len(items) == 300
    for n, item in enumerate(items):
        if n in (7, 8):
            assert not item.get("task_id")
            assert item["error"]["reason"] and item["error"]["message"], item
        else:
            assert v1.value(item["task_id"]) == 2 * n
    assert v1.post("/v1/tasks:batch", {"requests": []}).get("items", []) == []
    too_many = [{"function": function, "args": []}] * 10_001
    resp = v1.request("POST", "/v1/tasks:batch", {"requests": too_many})
    assert resp.status_code == 400, resp.text


def test_result_waits(v1: V1) -> None:
    task_id = v1.submit(nap, 0.5)
    first = v1.result(task_id, wait=0)
    assert first["status"] in ("QUEUED", "RUNNING")
    started = time.monotonic()
    assert v1.result(task_id, wait=20)["result"] == 0.5
    assert time.monotonic() - started < 10
    assert v1.request("GET", f"/v1/tasks/{UNKNOWN}/result?wait=1s").status_code == 404
    assert v1.request("GET", f"/v1/tasks/{task_id}/result?wait=6m").status_code == 400


def test_many_waiters_get_the_same_answer(shared: Fabric) -> None:
    from concurrent.futures import ThreadPoolExecutor

    v1 = shared.v1
    task_id = v1.submit(nap, 0.5)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: v1.result(task_id), range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["result"] == 0.5
