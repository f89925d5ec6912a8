"""Runners do not outlive their agent."""

import signal
import time
from pathlib import Path

import pytest
from conftest import Own
from harness import procfs
from harness.fabric import Mode
from harness.functions import wait_starts
from harness.wait import until
from importable_zoo import leave_child, nap


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT])
def test_no_runner_survives_its_agent(own: Own, mode: Mode, tmp_path: Path, number: signal.Signals) -> None:
    """Nor does what the runner started: one second after the end of the agent they are gone."""
    quick = ["--drain-timeout", "0s"]
    fabric = own.up(*quick, slots=3) if mode == "local" else own.up()
    agent = fabric.up if mode == "local" else fabric.worker(mode, *quick, slots=3)
    notes = tmp_path / "notes"
    fabric.v1.submit(leave_child, str(notes))
    fabric.v1.submit(nap, 300)
    task, child = wait_starts(notes, 2)
    assert procfs.exists(task.pid) and procfs.exists(child.pid)

    def left() -> dict[int, str]:
        """Processes of the agent's data folder that are not `up` or a worker, and the child."""
        ours = {p.pid for p in fabric.processes}
        found = {pid: text for pid, text in procfs.mentioning(str(fabric.folder)).items() if pid not in ours}
        if procfs.exists(child.pid):
            found[child.pid] = "the child"
        return found

    assert len(left()) >= 4, "three runners and the child"
    agent.signal(number)
    agent.exit_code()
    ended = time.monotonic()
    until(lambda: not left(), "the end of all runners", timeout=5)
    took = time.monotonic() - ended
    assert took <= 1, f"runners survived their agent by {took:.2f} s"
