"""SIGTERM: no new work, running work gets its time, and nothing is burned."""

import signal
from pathlib import Path

import pytest
from conftest import Own
from harness.fabric import QUICK, Mode
from harness.functions import starts, wait_starts
from harness.load import Load
from harness.wait import until
from importable_zoo import note, note_and_wait


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_worker_finishes_what_it_runs(own: Own, mode: Mode, tmp_path: Path) -> None:
    fabric = own.up()
    leaving = fabric.worker(mode)
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    running = fabric.v1.submit(note_and_wait, str(notes), str(gate), 1)
    wait_starts(notes, 1)
    leaving.signal(signal.SIGTERM)
    until(lambda: fabric.worker_record(leaving) is None, "the worker to be seen draining")

    queued = fabric.v1.submit(note, str(tmp_path / "queued"), 0, 2)
    fabric.worker(mode)
    assert fabric.v1.value(queued) == 2, "work for others waited for a worker that drains"
    assert leaving.running
    gate.touch()
    assert leaving.exit_code() == 0
    assert fabric.v1.value(running) == 1
    assert len(starts(notes)) == 1


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_worker_hands_back_what_takes_longer(own: Own, mode: Mode, tmp_path: Path) -> None:
    """Uncounted: a task that survives no loss survives this."""
    fabric = own.up()
    leaving = fabric.worker(mode, "--drain-timeout", "500ms")
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    task_id = fabric.v1.submit(note_and_wait, str(notes), str(gate), 1, options={"max_retries": 0})
    wait_starts(notes, 1)
    leaving.signal(signal.SIGTERM)
    assert leaving.exit_code() == 0
    until(lambda: fabric.v1.task(task_id)["status"] == "QUEUED", "the task to be queued again")
    fabric.worker(mode)
    wait_starts(notes, 2)
    gate.touch()
    assert fabric.v1.value(task_id) == 1
    record = fabric.v1.task(task_id)
    assert record["lost_workers"] == 0, record
    assert [a["end"] for a in record["attempts"]] == ["returned", "succeeded"], record


def test_up_finishes_what_its_pool_runs(own: Own, tmp_path: Path) -> None:
    fabric = own.up(slots=1)
    gate = tmp_path / "gate"
    notes = [tmp_path / f"notes-{n}" for n in range(3)]
    tasks = [fabric.v1.submit(note_and_wait, str(path), str(gate), path.name) for path in notes]
    wait_starts(notes[0], 1)
    fabric.up.signal(signal.SIGTERM)
    until(lambda: fabric.worker_record(fabric.up) is None, "the pool to be seen draining")
    gate.touch()
    assert fabric.up.exit_code() == 0
    assert not starts(notes[1]) + starts(notes[2]), "new work was started by a pool that drains"
    fabric.restart()
    for path, task_id in zip(notes, tasks):
        assert fabric.v1.value(task_id) == path.name
        record = fabric.v1.task(task_id)
        assert (record["attempt_count"], record["lost_workers"]) == (1, 0), record
        assert len(starts(path)) == 1


def test_up_hands_back_what_takes_longer(own: Own, tmp_path: Path) -> None:
    fabric = own.up("--drain-timeout", "300ms", slots=1)
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    task_id = fabric.v1.submit(note_and_wait, str(notes), str(gate), 1, options={"max_retries": 0})
    wait_starts(notes, 1)
    fabric.up.signal(signal.SIGTERM)
    assert fabric.up.exit_code() == 0
    fabric.restart()
    wait_starts(notes, 2)
    gate.touch()
    assert fabric.v1.value(task_id) == 1
    record = fabric.v1.task(task_id)
    assert record["lost_workers"] == 0, record
    assert [a["end"] for a in record["attempts"]] == ["returned", "succeeded"], record


@pytest.mark.layouts("embedded", "redis")
@pytest.mark.parametrize("mode", ["push", "pull"])
def test_up_leaves_remote_work_alone(own: Own, mode: Mode, tmp_path: Path) -> None:
    """A restart of the server is nothing that its workers' tasks notice."""
    fabric = own.up()
    fabric.worker(mode, slots=2)
    gates = [tmp_path / "early", tmp_path / "late"]
    notes = [tmp_path / f"notes-{n}" for n in range(2)]
    tasks = [fabric.v1.submit(note_and_wait, str(notes[n]), str(gates[n]), n) for n in range(2)]
    for path in notes:
        wait_starts(path, 1)
    fabric.up.signal(signal.SIGTERM)
    assert fabric.up.exit_code() == 0
    gates[0].touch()
    fabric.restart()
    gates[1].touch()
    for n, task_id in enumerate(tasks):
        assert fabric.v1.value(task_id) == n
        record = fabric.v1.task(task_id)
        assert (record["attempt_count"], record["lost_workers"]) == (1, 0), record
        assert len(starts(notes[n])) == 1


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_rolling_restart_under_load(own: Own, mode: Mode, tmp_path: Path) -> None:
    """Every process is replaced while clients submit: each task runs exactly once."""
    fabric = own.up(*QUICK)
    for _ in range(2):
        fabric.worker(mode, slots=2)
    load = Load(fabric.v1, tmp_path / "load")
    try:
        load.go_on(25)
        for old in list(fabric.workers):
            old.signal(signal.SIGTERM)
            assert old.exit_code() == 0
            fabric.worker(mode, slots=2)
            load.go_on(25)
        fabric.up.signal(signal.SIGTERM)
        assert fabric.up.exit_code() == 0
        fabric.restart()
        load.go_on(25)
    finally:
        load.stop()
    executions = load.check()
    assert set(executions.values()) == {1}, executions
    for task_id in load.acknowledged.values():
        record = fabric.v1.task(task_id)
        assert (record["attempt_count"], record["lost_workers"]) == (1, 0), record
