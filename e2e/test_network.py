"""Connections that break, stall, and are cut in the middle of a frame."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Own
from harness import procfs
from harness.fabric import QUICK, Fabric
from harness.functions import starts, wait_starts
from harness.load import Load
from harness.process import Process
from harness.proxy import Proxy
from harness.wait import until
from importable_zoo import echo_bytes, nap_then, note_and_wait

pytestmark = pytest.mark.parametrize("mode", ["push", "pull"])


class Remote:
    """A fabric whose workers reach it through a proxy."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.proxy = Proxy(fabric.grpc_addr)

    def worker(self, mode: str, slots: int = 1) -> Process:
        return self.fabric.worker(mode, slots=slots, dispatcher=self.proxy.address)


@pytest.fixture
def remote(own: Own) -> Iterator[Remote]:
    remote = Remote(own.up(*QUICK))
    yield remote
    remote.proxy.close()


def test_reset_connection_costs_nothing(remote: Remote, mode: str, tmp_path: Path) -> None:
    """Within the grace a worker comes back and claims what it holds."""
    fabric, proxy = remote.fabric, remote.proxy
    worker = remote.worker(mode)
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    task_id = fabric.v1.submit(note_and_wait, str(notes), str(gate), 1)
    wait_starts(notes, 1)
    for _ in range(3):
        proxy.arm(0)()
        until(lambda: fabric.worker_record(worker), "the worker to be back")
    gate.touch()
    assert fabric.v1.value(task_id) == 1
    record = fabric.v1.task(task_id)
    assert (record["attempt_count"], record["lost_workers"]) == (1, 0), record
    assert len(starts(notes)) == 1


def test_cut_in_the_middle_of_frames(remote: Remote, mode: str) -> None:
    """Wherever a value of some megabytes is cut, it arrives whole in the end."""
    fabric, proxy = remote.fabric, remote.proxy
    remote.worker(mode)
    data = bytes(range(256)) * (3 << 12)
    for size in (1, 17, 5_000, 100_000, 2_000_000, 4_000_000, 5_500_000):
        cut = proxy.arm(size)
        task_id = fabric.root.run(echo_bytes, data)
        cut()
        assert fabric.root.value(task_id) == data


def test_silent_network(remote: Remote, mode: str, tmp_path: Path) -> None:
    """A worker that nobody can hear is given up at the end of its lease; it gave up by itself before that."""
    fabric, proxy = remote.fabric, remote.proxy
    cut_off = remote.worker(mode)
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    task_id = fabric.v1.submit(note_and_wait, str(notes), str(gate))
    first = wait_starts(notes, 1)[0]
    fabric.worker(mode)

    proxy.stall()
    second = wait_starts(notes, 2, timeout=8)[1]
    # By then the first execution must have been killed, or two would work at the same time.
    assert not procfs.exists(first.pid), "the cut off worker still works on what another one has"
    gate.touch()
    assert fabric.v1.value(task_id) == second.pid
    proxy.flow()
    until(lambda: fabric.worker_record(cut_off), "the cut off worker to be back")
    record = fabric.v1.task(task_id)
    assert [a["end"] for a in record["attempts"]] == ["lost", "succeeded"], record
    assert len(starts(notes)) == 2
    assert fabric.v1.value(fabric.v1.submit(nap_then, 0, 3)) == 3


def test_stall_shorter_than_the_lease(own: Own, mode: str, tmp_path: Path) -> None:
    """Nothing runs again, and what ended meanwhile is delivered."""
    remote = Remote(own.up("--heartbeat", "300ms"))
    fabric, proxy = remote.fabric, remote.proxy
    try:
        worker = remote.worker(mode)
        notes, gate = tmp_path / "notes", tmp_path / "gate"
        task_id = fabric.v1.submit(note_and_wait, str(notes), str(gate), 9)
        wait_starts(notes, 1)
        proxy.stall()
        gate.touch()
        until(lambda: fabric.worker_record(worker) is None, "the dispatcher to notice the silence", timeout=8)
        proxy.flow()
        assert fabric.v1.value(task_id) == 9
        record = fabric.v1.task(task_id)
        assert (record["attempt_count"], record["lost_workers"]) == (1, 0), record
        assert len(starts(notes)) == 1
    finally:
        proxy.close()


def test_resets_under_load(remote: Remote, mode: str, tmp_path: Path) -> None:
    fabric, proxy = remote.fabric, remote.proxy
    remote.worker(mode, slots=2)
    load = Load(fabric.v1, tmp_path / "load")
    try:
        for n in range(15):
            proxy.arm(97 * n)()
            load.go_on(5)
    finally:
        load.stop()
    executions = load.check()
    assert set(executions.values()) == {1}, {n: c for n, c in executions.items() if c != 1}
