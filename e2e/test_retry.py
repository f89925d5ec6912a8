"""Functions and handlers decide on their next attempt: treadle.NoRetry, treadle.RetryAfter, and those of Go."""

import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from conftest import Own
from harness.fabric import CLIENT
from harness.process import ROOT, Process
from harness.v1 import V1, Json
from harness.wait import until

RETRIES = {"function_retries": 3}


GIVE_UP = """
import treadle

def give_up(kind):
    if kind == "text":
        raise treadle.NoRetry("no sense")
    try:
        {}["key"]
    except KeyError as missing:
        raise treadle.NoRetry(missing) from missing
"""

WAIT_A_SECOND = """
import treadle

async def wait_a_second():
    attempt = treadle.current_task().attempt
    if attempt == 1:
        raise treadle.RetryAfter(1, OSError("busy"))
    return attempt
"""

# By value as from a script, with the client's classes. A chunk of a map is one task: the word of
# one item is that of its chunk.
CALLER = """
import treadle
from treadle import NoRetry, current_task

def refuse(text):
    if text == "where":
        import treadle
        return treadle.__file__ if current_task().attempt == 1 else None
    raise NoRetry(text) if text else NoRetry(ValueError("empty"))

options = treadle.Options(function_retries=3)
with treadle.Client() as client:
    print(client.submit(refuse, "where").result(60).rpartition("/bundled/")[2])
    for wait in (
        lambda: client.submit(refuse, "", options=options).result(30),
        lambda: client.submit(refuse, "no", options=options).result(30),
        lambda: list(client.map(refuse, ["where", ""], chunksize=2, options=options)),
    ):
        try:
            print("returned", wait())
        except Exception as error:
            print(type(error) is treadle.NoRetry, type(error).__name__, error)
    print([task.attempt_count for task in client.tasks(filter="status = FAILED")])
"""


def source(v1: V1, text: str) -> str:
    function = v1.post("/v1/functions", {"name": "f", "source": text})["function_id"]
    assert isinstance(function, str)
    return function


def pauses(record: Json) -> list[float]:
    """How many seconds lie between the attempts of a task."""
    attempts = record["attempts"]
    return [
        (at(after["started_at"]) - at(before["finished_at"])).total_seconds()
        for before, after in zip(attempts, attempts[1:])
    ]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@pytest.mark.layouts("embedded", "redis", "split")
def test_no_retry(v1: V1) -> None:
    function = source(v1, GIVE_UP)
    for kind, want in {"text": ("treadle.NoRetry", "no sense"), "error": ("KeyError", "'key'")}.items():
        task = v1.submit(function, kind, options=RETRIES)
        error = v1.failure(task)
        assert (error["exception_type"], error["message"]) == want, error
        record = v1.task(task)
        assert [a["end"] for a in record["attempts"]] == ["raised"], record


@pytest.mark.layouts("embedded", "redis", "split")
def test_retry_after(v1: V1) -> None:
    function = source(v1, WAIT_A_SECOND)
    task = v1.submit(function, options=RETRIES)
    assert v1.value(task) == 2
    record = v1.task(task)
    assert [a["end"] for a in record["attempts"]] == ["raised", "succeeded"], record
    assert record["attempts"][0]["reason"] == "OSError: busy", record
    assert pauses(record)[0] > 0.9, "the usual delay is half a second"
    error = v1.failure(v1.submit(function))
    assert (error["exception_type"], error["message"]) == ("OSError", "busy"), "it spends a retry"


def test_callers_see_the_exception_that_was_given(tmp_path: Path) -> None:
    """On a worker whose Python has no client."""
    flags = ["--data-dir", str(tmp_path / "data"), "--slots", "1", "--json", "--python", sys.executable]
    up = Process("up", ["up", *flags, "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"], tmp_path)
    try:
        env = {**os.environ, "PYTHONPATH": str(CLIENT), "TREADLE_ADDRESS": str(up.ready()["grpc_addr"])}
        # A file has the module __main__, whose functions go by value.
        program = tmp_path / "caller.py"
        program.write_text(CALLER)
        done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, timeout=120)
    finally:
        up.stop()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "treadle.py",
        "False ValueError empty",
        "True NoRetry no",
        "False ValueError empty",
        "[1, 1, 1]",
    ]


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_go_handlers_decide_on_their_next_attempt(own: Own, tmp_path: Path, mode: str) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs Go")
    subprocess.run([go, "build", "-o", str(tmp_path), "./examples/goservice/worker"], cwd=ROOT, check=True, timeout=600)
    fabric = own.up()
    flags = ["-dispatcher", fabric.grpc_addr, "-mode", mode]
    worker = Process("goservice", flags, tmp_path / "logs", program=tmp_path / "worker")
    fabric.workers.append(worker)
    until(lambda: fabric.worker_record(worker), "the Go worker among the workers")
    v1, retries = fabric.v1, {"function_retries": 3}
    nameless = v1.submit("greet", {}, options=retries)
    error = v1.failure(nameless)
    assert (error["exception_type"], error["message"]) == ("*errors.errorString", "the visitor has no name"), error
    assert [a["end"] for a in v1.task(nameless)["attempts"]] == ["raised"]
    late = v1.submit("greet", {"name": "Ada", "late": True}, options=retries)
    assert v1.value(late) == {"text": "Hello, Ada!", "attempt": 2}
    assert pauses(v1.task(late))[0] > 0.9, "the usual delay is half a second"
    without = v1.submit("greet", {"name": "Ada", "late": True})
    assert v1.failure(without)["message"] == "the visitor is not there yet"
