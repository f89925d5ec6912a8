"""Sizes: what is too large is refused before anything is stored, what fits goes through whole."""

import base64
import os
import pickle

import pytest
import requests
from conftest import Own
from harness.fabric import Mode
from harness.root import Root, S
from harness.v1 import V1
from importable_zoo import double, echo_bytes, letters, say, zeros

MIB = 1 << 20
LIMIT = 64 << 10


@pytest.fixture(scope="module")
def large() -> tuple[bytes, str]:
    """64 MiB, less what the pickles of arguments and result add; and the arguments as clients send them."""
    data = os.urandom(64 * MIB - 200)
    return data, S(((data,), {}))


def test_64_mib_argument_and_result(root: Root, large: tuple[bytes, str]) -> None:
    """The limit itself, there and back."""
    data, payload = large
    resp = root.post("execute_function", {"function_id": root.register(echo_bytes), "payload": payload})
    assert resp.status_code == 200, resp.text
    back = root.value(resp.json()["task_id"], timeout=90)
    # Not in the assertion itself, which would print them.
    same = back == data
    assert same


def test_request_over_the_limit(root: Root) -> None:
    function_id = root.register(double)
    before = newest_task(root)
    # Base64 of 64 MiB and a little more.
    payload = b"A" * ((64 * MIB + 3 * MIB) // 3 * 4)
    body = b'{"function_id": "%s", "payload": "%s"}' % (function_id.encode(), payload)
    resp = requests.post(root.base + "execute_function", data=body, timeout=60)
    assert resp.status_code == 413, resp.text
    assert "64" in resp.json()["detail"] or str(64 * MIB) in resp.json()["detail"], resp.text
    assert newest_task(root) == before


def newest_task(root: Root) -> object:
    return requests.get(root.base + "v1/tasks?page_size=1", timeout=10).json()["tasks"]


def test_small_limit(own: Own, mode: Mode) -> None:
    """--max-payload counts for arguments, functions and results, in every mode."""
    fabric = own.start(mode, "--max-payload", "64KiB", slots=1)
    root, v1 = fabric.root, fabric.v1
    function_id = root.register(zeros)

    # To the byte: what a pickle adds to some thousand bytes is what it adds to a few more.
    task_id = root.execute(function_id, 1000)
    assert len(root.value(task_id)) == 1000
    fits = LIMIT - (v1.task(task_id)["result_size"] - 1000)
    assert len(root.value(root.execute(function_id, fits))) == fits
    task_id = root.execute(function_id, fits + 1)
    ended = root.end(task_id)
    assert ended.status == "FAILED"
    assert isinstance(ended.result, MemoryError)
    assert ended.result.error_type == "ResourceLimitExceeded"  # type: ignore[attr-defined]
    assert "ResourceLimitExceeded" in str(ended.result)
    message = ended.body["error"]["message"]
    assert str(LIMIT + 1) in message and str(LIMIT) in message, "it names size and limit"
    record = v1.task(task_id)
    assert record["attempt_count"] == 1, "a result too large is not tried again"

    echo = root.register(echo_bytes)
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413)):
        resp = root.post("execute_function", {"function_id": echo, "payload": call_of(size)})
        assert resp.status_code == status, resp.text
        if status == 200:
            assert set(root.value(resp.json()["task_id"])) == {ord("p")}
    resp = v1.request("POST", "/v1/tasks", {"function": echo, "args": ["z" * 66_000]})
    assert resp.status_code == 413, resp.text
    resp = v1.request("POST", "/v1/functions", {"name": "f", "source": "def f(): pass\n" + "#" * 66_000})
    assert resp.status_code == 413, resp.text

    # JSON results have the same limit.
    fits = LIMIT - len('""')
    assert v1.call(letters, fits)["result"] == "x" * fits
    answer = v1.call(letters, fits + 1)
    assert answer["status"] == "FAILED"
    assert answer["error"]["error_type"] == "ResourceLimitExceeded"


def call_of(size: int) -> str:
    """Base64 of pickled arguments, one bytes object, of size bytes altogether."""
    around = len(pickle.dumps(((b"p" * 1000,), {}), protocol=4)) - 1000
    data = pickle.dumps(((b"p" * (size - around),), {}), protocol=4)
    assert len(data) == size
    return base64.encodebytes(data).decode()


def test_body_without_end(root: Root) -> None:
    """A body that says nothing of its length is cut off at the limit, too."""

    def chunks() -> object:
        yield b'{"function_id": "00000000-0000-4000-8000-000000000000", "payload": "'
        for _ in range(100):
            yield b"A" * MIB
        yield b'"}'

    try:
        resp = requests.post(root.base + "execute_function", data=chunks(), timeout=60)  # type: ignore[arg-type]
    except requests.ConnectionError:
        return  # the server need not listen to the end
    assert resp.status_code == 413, resp.text


@pytest.mark.parametrize("times", [1, 20_000])
def test_logs(v1: V1, times: int) -> None:
    """The last 64 KiB of what a task printed; its result is intact whatever it prints."""
    task_id = v1.submit(say, "a line of the log", times)
    assert v1.value(task_id) == times
    text: str = v1.get(f"/v1/tasks/{task_id}/logs")["text"]
    assert text.endswith("a line of the log\nto stderr\n") or text.startswith("to stderr\n"), text[-100:]
    assert len(text.encode()) <= 64 << 10
    if times == 1:
        assert sorted(text.splitlines()) == ["a line of the log", "to stderr"]
    else:
        assert len(text) > 60 << 10
