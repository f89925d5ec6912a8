"""A worker that stands still for longer than its lease, and comes back."""

import signal
from pathlib import Path

import pytest
from conftest import Own
from harness.fabric import QUICK, Mode
from harness.functions import starts, wait_starts
from harness.wait import until
from importable_zoo import nap_then, note_and_wait


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_late_result_of_a_frozen_worker_is_refused(own: Own, mode: Mode, tmp_path: Path) -> None:
    fabric = own.up(*QUICK)
    frozen = fabric.worker(mode)
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    task_id = fabric.v1.submit(note_and_wait, str(notes), str(gate))
    first = wait_starts(notes, 1)[0]
    other = fabric.worker(mode)

    frozen.signal(signal.SIGSTOP)
    try:
        second = wait_starts(notes, 2, timeout=6)[1]
        assert second.pid != first.pid
        # Both executions end now: the runner of the frozen agent has its result ready
        # before the agent goes on.
        gate.touch()
        assert fabric.v1.value(task_id) == second.pid
        settled = fabric.v1.task(task_id)
    finally:
        frozen.signal(signal.SIGCONT)

    # Only a worker that knows what became of its old attempt takes new ones.
    until(lambda: fabric.worker_record(frozen), "the frozen worker to be back")
    other.signal(signal.SIGTERM)
    assert other.exit_code() == 0
    assert fabric.v1.value(fabric.v1.submit(nap_then, 0, 7)) == 7

    assert fabric.v1.value(task_id) == second.pid
    assert fabric.v1.task(task_id) == settled, "a terminal task changed"
    assert [a["end"] for a in settled["attempts"]] == ["lost", "succeeded"]
    assert settled["lost_workers"] == 1
    assert len(starts(notes)) == 2


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_short_freeze_costs_nothing(own: Own, mode: Mode, tmp_path: Path) -> None:
    fabric = own.up("--heartbeat", "300ms")
    worker = fabric.worker(mode)
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    task_id = fabric.v1.submit(note_and_wait, str(notes), str(gate), 5)
    wait_starts(notes, 1)
    worker.signal(signal.SIGSTOP)
    try:
        gate.touch()
        # Noticed as silent: the freeze was long enough to mean something.
        until(
            lambda: [w["state"] for w in fabric.v1.get("/v1/workers")["workers"]] != ["active"],
            "the dispatcher to notice the silence",
            timeout=8,
        )
    finally:
        worker.signal(signal.SIGCONT)
    assert fabric.v1.value(task_id) == 5
    record = fabric.v1.task(task_id)
    assert (record["attempt_count"], record["lost_workers"]) == (1, 0), record
    assert len(starts(notes)) == 1
