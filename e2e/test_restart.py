"""`up` is killed and comes back: nothing that it acknowledged is lost."""

import random
from pathlib import Path

import pytest
from conftest import Own
from harness.fabric import QUICK, Mode
from harness.functions import starts, wait_starts
from harness.load import Load
from harness.wait import until
from importable_zoo import double, note, note_and_wait, raise_value_error


@pytest.mark.layouts("embedded", "redis")
@pytest.mark.parametrize("mode", ["push", "pull"])
def test_workers_come_back_with_what_they_hold(own: Own, mode: Mode, tmp_path: Path) -> None:
    """Running and finished work of remote workers is delivered to the restarted server, not run again."""
    fabric = own.up()
    for _ in range(2):
        fabric.worker(mode, slots=2)
    early, late = tmp_path / "early", tmp_path / "late"
    gates = [early, early, late, late]
    notes = [tmp_path / f"notes-{n}" for n in range(4)]
    tasks = [fabric.v1.submit(note_and_wait, str(notes[n]), str(gates[n]), n) for n in range(4)]
    for path in notes:
        wait_starts(path, 1)
    ended = fabric.v1.submit(note, str(tmp_path / "queued"), 0, "queued")
    assert fabric.v1.task(ended)["status"] == "QUEUED"
    until(lambda: all(fabric.v1.task(task_id)["status"] == "RUNNING" for task_id in tasks), "four RUNNING tasks")

    fabric.up.kill()
    # Two tasks end while there is nobody to tell.
    early.touch()
    fabric.restart()
    late.touch()

    for n, task_id in enumerate(tasks):
        assert fabric.v1.value(task_id) == n
        record = fabric.v1.task(task_id)
        assert (record["attempt_count"], record["lost_workers"]) == (1, 0), record
        assert len(starts(notes[n])) == 1, "a task that its worker held ran again"
    assert fabric.v1.value(ended) == "queued"
    assert all(worker.running for worker in fabric.workers)


def test_local_pool_runs_its_tasks_again(own: Own, tmp_path: Path) -> None:
    """The pool dies with `up`: what it held counts one loss and runs again, what waited just runs."""
    fabric = own.up(slots=2)
    gate = tmp_path / "gate"
    notes = [tmp_path / f"notes-{n}" for n in range(6)]
    tasks = [fabric.v1.submit(note_and_wait, str(path), str(gate), path.name) for path in notes]
    running = until(lambda: r if len(r := [n for n in range(6) if starts(notes[n])]) == 2 else None, "two starts")
    fabric.up.kill()
    gate.touch()
    fabric.restart()
    for n, task_id in enumerate(tasks):
        assert fabric.v1.value(task_id) == notes[n].name
        assert len(starts(notes[n])) == (2 if n in running else 1)
        # A task that was only offered may count a loss as well: it is not written whether it started.
        assert fabric.v1.task(task_id)["lost_workers"] >= (1 if n in running else 0)


def test_records_survive(own: Own, mode: Mode) -> None:
    """Functions, results, errors and logs are as they were."""
    fabric = own.start(mode, slots=1)
    root = fabric.root
    function_id = root.register(double)
    good = root.execute(function_id, 21)
    bad = root.run(raise_value_error, "text")
    for task_id in (good, bad):
        root.wait_status(task_id, "COMPLETED", "FAILED")
    paths = [f"result/{good}", f"result/{bad}", f"v1/tasks/{good}", f"v1/tasks/{bad}", f"v1/functions/{function_id}"]
    before = [root.get(path).text for path in paths]
    fabric.up.kill()
    fabric.restart()
    assert [root.get(path).text for path in paths] == before
    assert root.value(root.execute(function_id, 4)) == 8


def test_kill_under_load(own: Own, mode: Mode, tmp_path: Path) -> None:
    """SIGKILL at random moments while clients submit: every acknowledged task ends with its own result."""
    fabric = own.start(mode, *QUICK, slots=2)
    load = Load(fabric.v1, tmp_path / "load")
    kills, moments = 3, random.Random()
    try:
        for _ in range(kills):
            load.go_on(moments.randint(10, 60))
            fabric.up.kill()
            fabric.restart()
    finally:
        load.stop()
    executions = load.check()
    assert load.repeated > 0, "no client noticed a kill"
    assert min(executions.values()) >= 1
    # Two slots, and as many offers at most as the window of a session holds: what was held
    # at a kill may run again, and nothing else does.
    again = sum(executions.values()) - len(executions)
    if mode == "local":
        assert again <= kills * 2, f"{again} of {len(executions)} tasks ran again"
    else:
        assert again == 0, f"workers hold their tasks, but {again} of {len(executions)} ran again"
