"""Cancel, timeouts, deadlines, retries, priorities: what a client may ask of its tasks."""

import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from conftest import Own
from harness import procfs
from harness.fabric import Mode
from harness.functions import starts, wait_starts
from harness.root import L
from harness.v1 import V1
from harness.wait import until
from importable_zoo import double, fail_first, leave_child, nap, nap_then, note, note_and_wait, raise_value_error


def all_slots_work(v1: V1, slots: int) -> None:
    """All slots take work, side by side."""
    started = time.monotonic()
    tasks = [v1.submit(nap_then, 1, n) for n in range(slots)]
    assert [v1.value(task_id) for task_id in tasks] == list(range(slots))
    took = time.monotonic() - started
    assert took < slots, f"a slot is missing: {slots} naps of 1 s took {took:.1f} s"


def test_cancel_running(v1: V1, tmp_path: Path) -> None:
    """The record at once, and the process and its children are really gone."""
    notes = tmp_path / "notes"
    task_id = v1.submit(leave_child, str(notes))
    task, child = wait_starts(notes, 2)
    assert procfs.exists(task.pid) and procfs.exists(child.pid)
    answer = v1.cancel(task_id)
    assert answer["status"] == "CANCELLED", answer
    assert answer["error"]["error_type"] == "Cancelled"
    until(lambda: not procfs.exists(task.pid), "the end of the runner", timeout=5)
    until(lambda: not procfs.exists(child.pid), "the end of the runner's child", timeout=5)
    assert v1.cancel(task_id) == v1.task(task_id), "a finished task is answered as it is"
    assert v1.result(task_id, wait=0)["status"] == "CANCELLED"
    all_slots_work(v1, 4)


def test_cancel_queued(v1: V1, tmp_path: Path) -> None:
    """It never starts."""
    gate = tmp_path / "gate"
    blocking = [v1.submit(note_and_wait, str(tmp_path / f"notes-{n}"), str(gate), n) for n in range(4)]
    for n in range(4):
        wait_starts(tmp_path / f"notes-{n}", 1)
    notes = tmp_path / "queued"
    task_id = v1.submit(note, str(notes))
    behind = v1.submit(double, 3)
    assert v1.cancel(task_id)["status"] == "CANCELLED"
    gate.touch()
    assert [v1.value(t) for t in blocking] == list(range(4))
    assert v1.value(behind) == 6
    assert not starts(notes)
    record = v1.task(task_id)
    assert (record["status"], record["attempt_count"]) == ("CANCELLED", 0), record


def test_cancel_of_a_finished_task_changes_nothing(v1: V1) -> None:
    task_id = v1.submit(double, 4)
    assert v1.value(task_id) == 8
    assert v1.cancel(task_id)["status"] == "COMPLETED"
    assert v1.value(task_id) == 8


def test_cancel_of_an_unknown_task(v1: V1) -> None:
    assert v1.request("POST", "/v1/tasks/00000000-0000-4000-8000-000000000000:cancel").status_code == 404


def test_timeout(v1: V1, tmp_path: Path) -> None:
    """It limits the run, not the wait, and is not tried again."""
    notes = tmp_path / "notes"
    started = time.monotonic()
    task_id = v1.submit(note, str(notes), 60, options={"timeout": "0.5s", "function_retries": 3})
    error = v1.failure(task_id)
    assert 0.5 <= time.monotonic() - started < 10
    assert error["error_type"] == "DeadlineExceededError"
    assert "500ms" in error["message"] or "0.5" in error["message"], error
    start = starts(notes)
    assert len(start) == 1
    until(lambda: not procfs.exists(start[0].pid), "the end of the runner", timeout=5)
    assert [a["end"] for a in v1.task(task_id)["attempts"]] == ["timed_out"]
    all_slots_work(v1, 4)


def test_timeout_of_the_server(own: Own, mode: Mode) -> None:
    fabric = own.start(mode, "--task-timeout", "500ms", slots=1)
    ended = fabric.root.end(fabric.root.run(nap, 60))
    assert ended.status == "FAILED"
    assert isinstance(ended.result, TimeoutError)
    assert ended.result.error_type == "DeadlineExceededError"  # type: ignore[attr-defined]
    assert "DeadlineExceededError" in str(ended.result)
    # One task's own limit counts for it, and the slot is there for it.
    assert fabric.v1.value(fabric.v1.submit(nap, 0.8, options={"timeout": "30s"})) == 0.8
    assert fabric.v1.value(fabric.v1.submit(nap, 0.1)) == 0.1


def in_seconds(seconds: float) -> str:
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat()


def test_deadline_of_a_running_task(v1: V1, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    started = time.monotonic()
    task_id = v1.submit(note, str(notes), 60, options={"deadline": in_seconds(1)})
    start = wait_starts(notes, 1)[0]
    assert v1.failure(task_id)["error_type"] == "DeadlineExceededError"
    assert 0.9 <= time.monotonic() - started < 4
    until(lambda: not procfs.exists(start.pid), "the end of the runner", timeout=5)
    all_slots_work(v1, 4)


def test_deadline_counts_waiting(own: Own) -> None:
    """No worker at all: it fails when its time has come, and not before."""
    fabric = own.up()
    started = time.monotonic()
    task_id = fabric.v1.submit(double, 1, options={"deadline": in_seconds(1)})
    assert fabric.v1.failure(task_id)["error_type"] == "DeadlineExceededError"
    assert 0.9 <= time.monotonic() - started < 4
    assert fabric.v1.task(task_id)["attempt_count"] == 0


def test_deadline_in_the_past(v1: V1, tmp_path: Path) -> None:
    task_id = v1.submit(note, str(tmp_path / "notes"), options={"deadline": in_seconds(-5)})
    assert v1.failure(task_id)["error_type"] == "DeadlineExceededError"
    assert not starts(tmp_path / "notes")


def test_function_retries(v1: V1, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    task_id = v1.submit(fail_first, str(notes), 2, options={"function_retries": 3})
    assert v1.value(task_id) == 3
    record = v1.task(task_id)
    assert [a["end"] for a in record["attempts"]] == ["raised", "raised", "succeeded"], record
    assert (record["raised"], record["lost_workers"]) == (2, 0), record


def test_function_retries_end(v1: V1, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    task_id = v1.submit(fail_first, str(notes), 100, options={"function_retries": 2})
    error = v1.failure(task_id)
    assert error["error_type"] == "FunctionExecutionFailure"
    assert error["message"] == "failure 3"
    assert "Traceback (most recent call last)" in error["traceback"]
    assert len(starts(notes)) == 3


def test_no_retries_by_default(v1: V1) -> None:
    task_id = v1.submit(raise_value_error, "once")
    error = v1.failure(task_id)
    assert error["exception_type"] == "ValueError"
    assert v1.task(task_id)["attempt_count"] == 1


def test_priorities(own: Own, mode: Mode, tmp_path: Path) -> None:
    """One slot: what waits goes by priority, then first in first out."""
    fabric = own.start(mode, slots=1)
    v1, gate = fabric.v1, tmp_path / "gate"
    blocking = v1.submit(note_and_wait, str(tmp_path / "blocking"), str(gate), 0)
    wait_starts(tmp_path / "blocking", 1)
    priorities = [5, 0, 9, 5, 1, 9, 0, 8]
    tasks = [v1.submit(note, str(tmp_path / str(n)), options={"priority": p}) for n, p in enumerate(priorities)]
    gate.touch()
    v1.value(blocking)
    for task_id in tasks:
        v1.value(task_id)
    began = sorted(range(len(tasks)), key=lambda n: starts(tmp_path / str(n))[0].at)
    assert began == sorted(range(len(tasks)), key=lambda n: (-priorities[n], n))


def test_priorities_behind_a_long_task(own: Own, mode: Mode, tmp_path: Path) -> None:
    """What was claimed ahead, as tasks were short, makes way for what is more urgent when one is not."""
    fabric = own.start(mode, slots=1)
    v1 = fabric.v1
    short = v1.post("/v1/tasks:batch", {"requests": [{"function": v1.register(double), "args": [1]}] * 200})["items"]
    for item in short:
        v1.value(item["task_id"])
    blocking = v1.submit(note, str(tmp_path / "blocking"), 2)
    wait_starts(tmp_path / "blocking", 1)

    def submit(n: int, priority: int) -> str:
        return v1.submit(note, str(tmp_path / str(n)), options={"priority": priority})

    # The worker returns these while the long task runs.
    tasks = [submit(n, 1) for n in range(8)] + [submit(n, 9) for n in (8, 9)]
    for task_id in [blocking, *tasks]:
        v1.value(task_id)
    began = sorted(range(len(tasks)), key=lambda n: starts(tmp_path / str(n))[0].at)
    assert began == [8, 9, *range(8)]


def test_memory_limit(own: Own, mode: Mode) -> None:
    """A task that eats more than it may fails alone, and the slot goes on."""
    fabric = own.start(mode, slots=1)
    v1 = fabric.v1
    source = "def eat(n):\n    return len(bytearray(n).replace(b'\\0', b'x'))"
    eat = v1.post("/v1/functions", {"name": "eat", "source": source})["function_id"]
    task_id = v1.submit(eat, 1 << 30, options={"memory_limit": 256 << 20})
    error = v1.failure(task_id)
    assert error["error_type"] == "ResourceLimitExceeded", error
    assert v1.task(task_id)["attempt_count"] == 1
    assert v1.value(v1.submit(eat, 1 << 20, options={"memory_limit": 256 << 20})) == 1 << 20
    ended = fabric.root.end(task_id)
    assert isinstance(ended.result, MemoryError)
    assert L(ended.body["result"]).error_type == "ResourceLimitExceeded"


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 10},
        {"priority": -1},
        {"timeout": "-1s"},
        {"max_retries": -1},
        {"function_retries": -1},
        {"memory_limit": -1},
        {"timeout": "soon"},
        {"priority": "high"},
    ],
)
def test_options_that_mean_nothing_are_refused(v1: V1, options: dict[str, object]) -> None:
    body = {"function": v1.register(double), "args": [1], "options": options}
    resp = v1.request("POST", "/v1/tasks", body)
    assert resp.status_code == 400, resp.text
    assert resp.json()["error"]["reason"]
