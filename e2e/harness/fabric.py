"""Fabrics: the processes that one deployment consists of."""

import shutil
import sys
from pathlib import Path
from typing import Literal, Optional

from harness import procfs
from harness.process import Process
from harness.root import Root
from harness.v1 import V1, Json
from harness.wait import until

Mode = Literal["local", "push", "pull"]
MODES: tuple[Mode, ...] = ("local", "push", "pull")
IMPORTABLE = Path(__file__).resolve().parents[1] / "importable"

# Runners get the interpreter that runs the tests, as it has dill and cloudpickle.
PYTHON = ["--python", sys.executable, "--python-path", str(IMPORTABLE)]

# Signs of death are noticed sooner than by default, where a test waits for them.
QUICK = ["--lease", "2s", "--heartbeat", "200ms", "--reconnect-grace", "500ms"]


class Fabric:
    """`treadle up` on a data folder, and the workers that were started beside it."""

    def __init__(self, folder: Path, *args: str, slots: int = 0, cwd: Optional[Path] = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.workers: list[Process] = []
        self._slots = slots
        self._args = args
        self._cwd = cwd
        self._started = 0
        self.grpc_addr = self.http_addr = "127.0.0.1:0"
        self._up()

    def again(self) -> Process:
        """Starts a process as `up` was, and waits for nothing."""
        args = ["up", "--json", "--data-dir", str(self.data), "--slots", str(self._slots)]
        args += ["--grpc-addr", self.grpc_addr, "--http-addr", self.http_addr, *PYTHON, *self._args]
        self.up = Process("up", args, self.folder, self._cwd)
        return self.up

    def _up(self) -> None:
        up = self.again()
        try:
            ready = up.ready()
            assert ready["pid"] == up.pid, ready
            self.grpc_addr, self.http_addr = ready["grpc_addr"], ready["http_addr"]
            self.root = Root(f"http://{self.http_addr}/")
            self.v1 = V1(f"http://{self.http_addr}")
            if self._slots:
                self._attached(up, self._slots)
        except BaseException:
            up.stop()
            raise

    def restart(self) -> None:
        """Starts a new `up` where the old one was, which must have ended: same folder, same ports."""
        assert not self.up.running
        self._up()

    def worker(
        self,
        mode: str,
        *args: str,
        slots: int = 1,
        cwd: Optional[Path] = None,
        dispatcher: str = "",
        wait: bool = True,
    ) -> Process:
        """Starts a worker and, unless told otherwise, waits until it is attached."""
        self._started += 1
        flags = ["worker", "--mode", mode, "--dispatcher", dispatcher or self.grpc_addr, "--slots", str(slots)]
        flags += ["--data-dir", str(self.data), *PYTHON, *args]
        worker = Process(f"worker-{self._started}", flags, self.folder, cwd)
        self.workers.append(worker)
        if wait:
            self._attached(worker, slots)
        return worker

    def _attached(self, process: Process, slots: int) -> None:
        def active() -> Optional[Json]:
            assert process.running, f"{process.name} ended with {process.exit_code()}:\n{process.log()}"
            return self.worker_record(process)

        record = until(active, f"{process.name} among the workers")
        assert record["slots"] == slots, record

    def worker_record(self, process: Process) -> Optional[Json]:
        """What the fabric says about a worker that is attached and active."""
        for w in self.v1.get("/v1/workers")["workers"]:
            if w["pid"] == process.pid and w["state"] == "active":
                assert isinstance(w, dict)
                return w
        return None

    @property
    def processes(self) -> list[Process]:
        return [self.up, *self.workers]

    def close(self) -> None:
        """Kills everything and removes what it stored; a process that outlives this is an error."""
        for process in self.processes:
            process.stop()
        until(
            lambda: not procfs.mentioning(str(self.folder)),
            f"the end of all runners of {self.folder}: {procfs.mentioning(str(self.folder))}",
            timeout=5,
        )
        shutil.rmtree(self.data, ignore_errors=True)


def start(folder: Path, mode: Mode, *args: str, slots: int = 4) -> Fabric:
    """A fabric with slots in one place: the pool of `up`, or one worker of the given mode."""
    if mode == "local":
        return Fabric(folder, *args, slots=slots)
    fabric = Fabric(folder, *args)
    try:
        fabric.worker(mode, slots=slots)
    except BaseException:
        fabric.close()
        raise
    return fabric
