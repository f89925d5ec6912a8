"""Workers and runners that die: their tasks run elsewhere, and none is lost."""

import os
import signal
import time
from pathlib import Path

import pytest
from conftest import Own
from harness.fabric import LAYOUTS, QUICK, Fabric, Mode
from harness.functions import Start, starts, wait_starts
from harness.root import Root
from harness.wait import until
from importable_zoo import kill_agent, kill_own_runner, kill_parent, nap_then, note, note_and_wait

pytestmark = pytest.mark.layouts("embedded", "split")


def kill_holder(fabric: Fabric, start: Start) -> None:
    """Kills what runs the task: the worker, or in local mode, where that would be everything, the runner."""
    if fabric.workers:
        fabric.workers[-1].kill()
    else:
        os.kill(start.pid, signal.SIGKILL)


def replace_worker(fabric: Fabric, mode: Mode) -> None:
    if fabric.workers:
        fabric.worker(mode)


@pytest.mark.layouts(*LAYOUTS)
def test_worker_failure_manual(own: Own, mode: Mode, tmp_path: Path) -> None:
    fabric = own.start(mode, *QUICK, slots=1)
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    task_id = fabric.root.run(note_and_wait, str(notes), str(gate), 42)
    first = wait_starts(notes, 1)[0]
    fabric.root.wait_status(task_id, "RUNNING")

    kill_holder(fabric, first)
    if fabric.workers:
        fabric.root.wait_status(task_id, "QUEUED", timeout=5)
    replace_worker(fabric, mode)
    second = wait_starts(notes, 2)[1]
    assert second.pid != first.pid
    gate.touch()

    assert fabric.root.value(task_id) == 42
    record = fabric.v1.task(task_id)
    assert record["lost_workers"] == 1, record
    assert [a["end"] for a in record["attempts"]] == ["lost", "succeeded"], record
    assert len(starts(notes)) == 2


@pytest.mark.layouts(*LAYOUTS)
def test_worker_failure_automated(own: Own, mode: Mode, tmp_path: Path) -> None:
    """Four workers killed: the task is FAILED."""
    fabric = own.start(mode, *QUICK, slots=1)
    notes = tmp_path / "notes"
    task_id = fabric.root.run(note, str(notes), 60)
    for n in range(1, 5):
        start = wait_starts(notes, n)[-1]
        kill_holder(fabric, start)
        if n < 4:
            replace_worker(fabric, mode)

    ended = fabric.root.end(task_id)
    assert ended.status == "FAILED"
    assert type(ended.result) is RuntimeError
    assert ended.result.error_type == "WorkerFailureError"  # type: ignore[attr-defined]
    assert "WorkerFailureError" in str(ended.result)
    assert ended.body["error"]["error_type"] == "WorkerFailureError"
    record = fabric.v1.task(task_id)
    assert record["attempt_count"] == 4, record
    assert [a["end"] for a in record["attempts"]] == ["lost"] * 4, record
    replace_worker(fabric, mode)
    assert fabric.root.value(fabric.root.run(nap_then, 0, 1)) == 1
    assert len(starts(notes)) == 4, "it ran again after it had failed"


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_killed_workers_tasks_run_elsewhere_within_two_seconds(own: Own, mode: Mode, tmp_path: Path) -> None:
    """With the settings that everyone has who sets none."""
    fabric = own.up()
    victim = fabric.worker(mode, slots=2)
    gate = tmp_path / "gate"
    notes = [tmp_path / f"notes-{n}" for n in range(2)]
    tasks = [fabric.v1.submit(note_and_wait, str(path), str(gate)) for path in notes]
    for path in notes:
        wait_starts(path, 1)
    fabric.worker(mode, slots=2)

    killed = time.monotonic()
    victim.kill()
    took = [wait_starts(path, 2)[1].at - killed for path in notes]
    gate.touch()
    for path, task_id in zip(notes, tasks):
        assert fabric.v1.value(task_id) == starts(path)[1].pid
        assert len(starts(path)) == 2
        assert fabric.v1.task(task_id)["lost_workers"] == 1
    assert max(took) <= 2, f"from SIGKILL to the second start: {took}"


def run_others(root: Root, count: int) -> list[str]:
    function_id = root.register(nap_then)
    return [root.execute(function_id, 0.05, n) for n in range(count)]


def test_poison_function_ends_and_others_do_not_notice(shared: Fabric) -> None:
    """A function that kills its runner is given up after four attempts; the slots are there afterwards."""
    root, v1 = shared.root, shared.v1
    poison = [root.run(kill_own_runner) for _ in range(2)]
    others = run_others(root, 40)
    for task_id in poison:
        ended = root.end(task_id)
        assert ended.status == "FAILED"
        assert ended.body["error"]["error_type"] == "WorkerFailureError"
        assert v1.task(task_id)["attempt_count"] == 4
    assert [root.value(task_id) for task_id in others] == list(range(40))
    assert all(v1.task(task_id)["lost_workers"] == 0 for task_id in others)
    started = time.monotonic()
    naps = [v1.submit(nap_then, 1, n) for n in range(4)]
    assert [v1.value(task_id) for task_id in naps] == [0, 1, 2, 3]
    assert time.monotonic() - started < 3.5, "a slot is missing: four naps did not run side by side"


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_function_that_kills_every_agent(own: Own, mode: Mode) -> None:
    """It ends after four of them; whoever shared a worker with it runs elsewhere."""
    fabric = own.up(*QUICK)
    workers = [fabric.worker(mode, slots=2) for _ in range(5)]
    others = run_others(fabric.root, 60)
    poison = fabric.v1.submit(kill_parent)
    assert fabric.v1.failure(poison)["error_type"] == "WorkerFailureError"
    assert fabric.v1.task(poison)["attempt_count"] == 4
    assert [fabric.root.value(task_id) for task_id in others] == list(range(60))
    assert sum(worker.running for worker in workers) == 1


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_function_that_kills_the_agent_it_is_told_of(own: Own, mode: Mode) -> None:
    fabric = own.up(*QUICK)
    victim, other = fabric.worker(mode), None
    task_id = fabric.v1.submit(kill_agent, victim.pid)
    assert victim.exit_code() == -signal.SIGKILL
    other = fabric.worker(mode)
    assert fabric.v1.value(task_id) == "elsewhere"
    record = fabric.v1.task(task_id)
    assert (record["attempt_count"], record["lost_workers"]) == (2, 1), record
    assert other.running


def test_max_retries_of_a_task(own: Own, mode: Mode) -> None:
    """Tasks may say how many losses they survive."""
    fabric = own.start(mode, *QUICK, "--max-retries", "1", slots=1)
    for options, attempts in (({}, 2), ({"max_retries": 0}, 1), ({"max_retries": 2}, 3)):
        task_id = fabric.v1.submit(kill_own_runner, options=options)
        assert fabric.v1.failure(task_id)["error_type"] == "WorkerFailureError"
        assert fabric.v1.task(task_id)["attempt_count"] == attempts
    until(lambda: fabric.v1.get("/v1/queues")["queues"] == [], "empty queues")
